//! `metrics.jsonl`: one JSON object a line, appended while the run goes on. Documented in `docs/formats.md`.

use super::{Score, Split};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Version of the record below; it changes when a key changes its meaning or goes.
pub const METRICS_SCHEMA: u32 = 1;

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`METRICS_SCHEMA`].
    pub schema: u32,
    /// Seconds since the start of the run, those before a resume counted.
    pub time_s: f64,
    /// Steps done.
    pub step: u64,
    /// Epochs, counted from 1: the one that the record belongs to.
    pub epoch: u64,
    /// What it was measured on; `train` is over the images as they were trained on.
    pub split: Split,
    /// Mean cross-entropy an image, natural logarithm.
    pub loss: f64,
    /// Correct / n, a fraction.
    pub accuracy: f64,
    /// Images.
    pub n: u64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Images a second while it was measured.
    pub images_per_s: f64,
}

impl Record {
    /// Its loss and accuracy.
    pub fn score(&self) -> Score {
        Score { loss: self.loss, accuracy: self.accuracy, n: self.n }
    }
}

/// Appends records.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl MetricsWriter {
    /// A new, empty file; one that stands there is emptied.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(Error::io(path, "cannot write the metrics"))?;
        Ok(MetricsWriter { path: path.to_path_buf(), file, bytes: 0 })
    }

    /// Goes on after the first `bytes` bytes, as a checkpoint noted them ([`MetricsWriter::sync`]): what was recorded after
    /// that checkpoint will be recorded again, so it is cut off. Of a file that is shorter, or was edited so that no line
    /// ends there, the whole lines before that place are kept.
    pub fn resume(path: &Path, bytes: u64) -> Result<Self> {
        let fail = || Error::io(path, "cannot go on with the metrics");
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(fail())?;
        let mut text = Vec::new();
        Read::by_ref(&mut file).take(bytes).read_to_end(&mut text).map_err(fail())?;
        let keep = text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at as u64 + 1);
        file.set_len(keep).map_err(fail())?;
        file.seek(SeekFrom::Start(keep)).map_err(fail())?;
        Ok(MetricsWriter { path: path.to_path_buf(), file, bytes: keep })
    }

    /// Appends one record with one write.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let numbers = [record.time_s, record.loss, record.accuracy, record.lr, record.images_per_s];
        if numbers.iter().any(|v| !v.is_finite()) {
            return Err(Error::Failed(format!("{}: a number that is not finite in {record:?}", self.path.display())));
        }
        let mut line =
            serde_json::to_vec(record).map_err(|e| Error::Failed(format!("{}: {e}", self.path.display())))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(Error::io(&self.path, "cannot write the metrics"))?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Brings the file to the disk and tells its length, for the checkpoint that is written next.
    pub fn sync(&mut self) -> Result<u64> {
        self.file.sync_all().map_err(Error::io(&self.path, "cannot write the metrics"))?;
        Ok(self.bytes)
    }
}

/// All records of a file. A last line without its end, as a killed process leaves it, is left out.
pub fn read_metrics(path: &Path) -> Result<Vec<Record>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path, "cannot read the metrics"))?;
    let whole = text.rfind('\n').map_or("", |at| &text[..at]);
    let mut records = Vec::new();
    for (i, line) in whole.lines().enumerate() {
        let record: Record =
            serde_json::from_str(line).map_err(|e| Error::data(path, format!("line {}: {e}", i + 1)))?;
        if record.schema != METRICS_SCHEMA {
            let what = format!("line {}: schema {}, this engine reads {METRICS_SCHEMA}", i + 1, record.schema);
            return Err(Error::data(path, what));
        }
        records.push(record);
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> Record {
        Record {
            schema: METRICS_SCHEMA,
            time_s: 0.1 + 0.2,
            step,
            epoch: step / 10 + 1,
            split: Split::Train,
            loss: 1.0 / 3.0,
            accuracy: 0.5,
            n: 128,
            lr: 0.1,
            images_per_s: 1e3,
        }
    }

    #[test]
    fn lines_read_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut w = MetricsWriter::create(&path).unwrap();
        let records = [record(1), Record { split: Split::Test, ..record(2) }];
        records.iter().for_each(|r| w.write(r).unwrap());
        assert_eq!(w.sync().unwrap(), std::fs::metadata(&path).unwrap().len());
        assert_eq!(read_metrics(&path).unwrap(), records);
        let line: serde_json::Value =
            serde_json::from_str(std::fs::read_to_string(&path).unwrap().lines().nth(1).unwrap()).unwrap();
        assert_eq!((&line["split"], &line["schema"], &line["step"]), (&"test".into(), &1.into(), &2.into()));
        let page = include_str!("../../docs/formats.md");
        for key in line.as_object().unwrap().keys() {
            assert!(page.contains(&format!("`{key}`")), "{key} is not in docs/formats.md");
        }
    }

    #[test]
    fn a_resumed_file_doubles_nothing_and_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut w = MetricsWriter::create(&path).unwrap();
        w.write(&record(1)).unwrap();
        let at = w.sync().unwrap();
        w.write(&record(2)).unwrap();
        drop(w);
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"schema\": 1, \"ti").unwrap();
        assert_eq!(read_metrics(&path).unwrap(), [record(1), record(2)]);
        let mut w = MetricsWriter::resume(&path, at).unwrap();
        w.write(&record(2)).unwrap();
        w.write(&record(3)).unwrap();
        let end = w.sync().unwrap();
        assert_eq!(read_metrics(&path).unwrap(), [record(1), record(2), record(3)]);
        assert_eq!(end, std::fs::metadata(&path).unwrap().len());
        drop(MetricsWriter::resume(&path, end).unwrap());
        assert_eq!(read_metrics(&path).unwrap().len(), 3);
        drop(MetricsWriter::resume(&path, end + 1000).unwrap()); // lost its end with the machine
        assert_eq!(read_metrics(&path).unwrap().len(), 3);
        drop(MetricsWriter::resume(&path, at + 5).unwrap()); // edited: no line ends there
        assert_eq!(read_metrics(&path).unwrap(), [record(1)]);
        std::fs::remove_file(&path).unwrap();
        drop(MetricsWriter::resume(&path, at).unwrap());
        assert_eq!(read_metrics(&path).unwrap(), []);
    }

    #[test]
    fn what_json_cannot_hold_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut w = MetricsWriter::create(&path).unwrap();
        for bad in [f64::NAN, f64::INFINITY] {
            assert!(w.write(&Record { loss: bad, ..record(1) }).unwrap_err().to_string().contains("not finite"));
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn bad_lines_and_other_schemas_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let good = serde_json::to_string(&record(1)).unwrap();
        std::fs::write(&path, format!("{good}\nnonsense\n")).unwrap();
        assert!(read_metrics(&path).unwrap_err().to_string().contains("metrics.jsonl: line 2: "));
        std::fs::write(&path, format!("{}\n", good.replace("\"schema\":1", "\"schema\":2"))).unwrap();
        assert!(read_metrics(&path).unwrap_err().to_string().contains("line 1: schema 2, this engine reads 1"));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_an_error() {
        let mut w = MetricsWriter::create(Path::new("/dev/full")).unwrap();
        let error = w.write(&record(1)).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().starts_with("/dev/full: cannot write the metrics: "), "{error}");
    }
}
