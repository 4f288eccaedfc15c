//! `metrics.jsonl`: one JSON object a line, appended while the run goes on. Documented in `docs/formats.md`.

use super::{Score, Split};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
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
    /// Of it, seconds in training steps.
    pub train_time_s: f64,
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
}

/// Seconds of a run's earlier legs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// In all.
    pub time_s: f64,
    /// In training steps.
    pub train_time_s: f64,
}

impl MetricsWriter {
    /// A new, empty file; one that stands there is emptied.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(Error::io(path, "cannot write the metrics"))?;
        Ok(MetricsWriter { path: path.to_path_buf(), file })
    }

    /// Goes on from a checkpoint of step `step`, and tells the time spent until then. What was recorded later will be
    /// recorded again, so it is cut off; `within_epoch`: so is what that step itself recorded, a part of an epoch.
    pub fn resume(path: &Path, step: u64, within_epoch: bool) -> Result<(Self, Spent)> {
        let mut records = if path.exists() { read_metrics(path)? } else { Vec::new() };
        records.retain(|r| r.step <= step);
        let spent = records.last().map_or(Spent::default(), |r| Spent { time_s: r.time_s, train_time_s: r.train_time_s });
        records.retain(|r| r.step < step || !within_epoch);
        let mut writer = Self::create(&path.with_extension("jsonl.tmp"))?;
        records.iter().try_for_each(|r| writer.write(r))?;
        writer.sync()?;
        std::fs::rename(&writer.path, path).map_err(Error::io(path, "cannot go on with the metrics"))?;
        Ok((MetricsWriter { path: path.to_path_buf(), ..writer }, spent))
    }

    /// Appends one record with one write.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let numbers = [record.time_s, record.train_time_s, record.loss, record.accuracy, record.lr, record.images_per_s];
        if numbers.iter().any(|v| !v.is_finite()) {
            return Err(Error::Failed(format!("{}: a number that is not finite in {record:?}", self.path.display())));
        }
        let mut line =
            serde_json::to_vec(record).map_err(|e| Error::Failed(format!("{}: {e}", self.path.display())))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(Error::io(&self.path, "cannot write the metrics"))
    }

    /// Brings the file to the disk.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync_all().map_err(Error::io(&self.path, "cannot write the metrics"))
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
            train_time_s: 0.1,
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
        let at = |step, time_s| Record { time_s, ..record(step) };
        [at(1, 1.0), at(2, 2.0), at(3, 3.0)].iter().for_each(|r| w.write(r).unwrap());
        drop(w);
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"schema\": 1, \"ti").unwrap();
        let (mut w, spent) = MetricsWriter::resume(&path, 2, false).unwrap();
        assert_eq!(spent, Spent { time_s: 2.0, train_time_s: 0.1 });
        assert_eq!(read_metrics(&path).unwrap(), [at(1, 1.0), at(2, 2.0)], "step 3 will come again");
        w.write(&at(3, 3.5)).unwrap();
        drop(w);
        let (_, spent) = MetricsWriter::resume(&path, 3, true).unwrap();
        assert_eq!(spent.time_s, 3.5, "the time until the checkpoint counts");
        assert_eq!(read_metrics(&path).unwrap(), [at(1, 1.0), at(2, 2.0)], "a part of an epoch is recorded whole later");
        std::fs::remove_file(&path).unwrap();
        let (_, spent) = MetricsWriter::resume(&path, 3, true).unwrap();
        assert_eq!((read_metrics(&path).unwrap(), spent), (vec![], Spent::default()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
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
