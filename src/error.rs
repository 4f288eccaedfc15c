//! One error type. Each message is one line: what, where, wanted, got, what to do.

use std::path::{Path, PathBuf};

/// Everything that can go wrong on user input or on the machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Wrong arguments or configuration: exit code 2. Several faults are joined by newlines.
    #[error("{0}")]
    Usage(String),
    /// Input data that cannot be used: exit code 1.
    #[error("{path}: {what}")]
    Data {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, wanted and got.
        what: String,
    },
    /// An operating-system failure on a file: exit code 1.
    #[error("{path}: {doing}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, such as "cannot read".
        doing: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// No usable GPU, or no kernels in this binary: exit code 69.
    #[error("{0}")]
    NoGpu(String),
    /// The run stopped on request after writing a checkpoint: exit code 75.
    #[error("stopped at step {step}; checkpoint written to {path}; go on with --resume {run}")]
    Stopped {
        /// Steps done.
        step: u64,
        /// The checkpoint.
        path: PathBuf,
        /// The run directory.
        run: PathBuf,
    },
    /// Anything else that failed at run time, a loss that turned NaN for instance: exit code 1.
    #[error("{0}")]
    Failed(String),
}

/// Result with the crate's error.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The process exit code: 1 failure, 2 usage, 69 no usable GPU, 75 stopped with a checkpoint.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            Error::NoGpu(_) => 69,
            Error::Stopped { .. } => 75,
            Error::Data { .. } | Error::Io { .. } | Error::Failed(_) => 1,
        }
    }

    /// A data error at `path`.
    pub fn data(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Error::Data { path: path.as_ref().into(), what: what.into() }
    }

    /// For `map_err`: an I/O error at `path` while `doing`.
    pub fn io(path: impl AsRef<Path>, doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, doing, source }
    }
}

/// The candidate that a slip of the pen turns into `word`: at most a third of its letters edited.
pub(crate) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    candidates
        .map(|c| (edits(word, c), c))
        .filter(|&(d, c)| d <= (c.len() / 3).max(1))
        .min_by_key(|&(d, _)| d)
        .map(|(_, c)| c)
}

/// Edits that turn `a` into `b`: bytes inserted, removed, replaced, or swapped with their neighbour.
fn edits(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut d = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            d[i][j] = match (i, j) {
                (0, _) | (_, 0) => i + j,
                _ => {
                    let replace = d[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let best = replace.min(d[i - 1][j] + 1).min(d[i][j - 1] + 1);
                    let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                    if swapped { best.min(d[i - 2][j - 2] + 1) } else { best }
                }
            };
        }
    }
    d[a.len()][b.len()]
}
