//! `metrics.jsonl`: one JSON object a line, appended while the run goes on. Documented in `docs/formats.md`.

use super::lines::{Line, Lines, read_lines};
use super::{Score, Split};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Version of the record below; it changes when a key changes its meaning or goes.
pub const METRICS_SCHEMA: u32 = 1;

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`METRICS_SCHEMA`].
    pub schema: u32,
    /// Seconds since the start of the run, those before a resume counted.
    pub time_s: f64,
    /// Of these, seconds in training steps.
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

impl Line for Record {
    const SCHEMA: u32 = METRICS_SCHEMA;
    const WHAT: &'static str = "the metrics";

    fn schema(&self) -> u32 {
        self.schema
    }
    fn step(&self) -> u64 {
        self.step
    }
    fn is_finite(&self) -> bool {
        let Record { time_s, train_time_s, loss, accuracy, lr, images_per_s, .. } = *self;
        [time_s, train_time_s, loss, accuracy, lr, images_per_s].iter().all(|v| v.is_finite())
    }
}

/// Appends records. Of two with one step and split the first stays: a run that goes on from a checkpoint at the end of an
/// epoch records that end anew.
#[derive(Debug)]
pub struct MetricsWriter {
    lines: Lines<Record>,
    /// What the newest step has been recorded on.
    newest: Vec<(u64, Split)>,
    times_s: (f64, f64),
}

impl MetricsWriter {
    /// A new, empty file; one that stands there is emptied.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(MetricsWriter { lines: Lines::create(path)?, newest: Vec::new(), times_s: (0.0, 0.0) })
    }

    /// Goes on with the file of a run that goes on from a checkpoint at `step` ([`Lines::resume`]).
    pub fn resume(path: &Path, step: u64) -> Result<Self> {
        let (lines, records) = Lines::resume(path, step)?;
        let mut writer = MetricsWriter { lines, newest: Vec::new(), times_s: (0.0, 0.0) };
        records.iter().for_each(|record| writer.note(record));
        Ok(writer)
    }

    fn note(&mut self, record: &Record) {
        self.newest.retain(|(step, _)| *step == record.step);
        self.newest.push((record.step, record.split));
        self.times_s = (record.time_s, record.train_time_s);
    }

    /// Seconds so far, by the newest record: in all, and in training steps.
    pub fn times_s(&self) -> (f64, f64) {
        self.times_s
    }

    /// Appends one record.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        if self.newest.contains(&(record.step, record.split)) {
            return Ok(());
        }
        self.lines.write(record)?;
        self.note(record);
        Ok(())
    }

    /// Brings the file to the disk, before the checkpoint of the same step.
    pub fn sync(&mut self) -> Result<()> {
        self.lines.sync()
    }
}

/// All records of a file. A last line without its end, as a killed process leaves it, is left out.
pub fn read_metrics(path: &Path) -> Result<Vec<Record>> {
    read_lines(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn record(step: u64) -> Record {
        Record {
            schema: METRICS_SCHEMA,
            time_s: 0.1 + 0.2 + step as f64,
            train_time_s: step as f64,
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
        w.sync().unwrap();
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
        let test = |step| Record { split: Split::Test, ..record(step) };
        let mut w = MetricsWriter::create(&path).unwrap();
        assert_eq!(w.times_s(), (0.0, 0.0));
        [record(1), record(2), test(2), record(3)].iter().for_each(|r| w.write(r).unwrap());
        drop(w);
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"schema\": 1, \"ti").unwrap();
        assert_eq!(read_metrics(&path).unwrap().len(), 4, "half a line is left out");
        let mut w = MetricsWriter::resume(&path, 2).unwrap();
        assert_eq!(w.times_s(), (record(2).time_s, 2.0));
        assert_eq!(read_metrics(&path).unwrap(), [record(1), record(2), test(2)]);
        // The checkpoint was written at the very end of an epoch, which now ends once more.
        [record(2), test(2), record(3), record(4)].iter().for_each(|r| w.write(r).unwrap());
        let all = [record(1), record(2), test(2), record(3), record(4)];
        assert_eq!(read_metrics(&path).unwrap(), all);
        let bytes = std::fs::read(&path).unwrap();
        drop(MetricsWriter::resume(&path, 4).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap(); // the end of the last line lost with the machine
        drop(MetricsWriter::resume(&path, 4).unwrap());
        assert_eq!(read_metrics(&path).unwrap(), all[..4]);
        std::fs::remove_file(&path).unwrap();
        drop(MetricsWriter::resume(&path, 4).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"");
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
