//! What the Criterion benches share.

use criterion::Criterion;
use sparse_engine::Result;
use std::time::Duration;

/// Criterion with `samples` samples in about `time` a bench; the command line changes it.
///
/// No plots: the numbers are what counts. 10,000 resamples instead of 100,000, as 10 to 20 samples have no finer quantiles.
pub fn criterion(samples: usize, time: Duration) -> Criterion {
    Criterion::default()
        .without_plots()
        .sample_size(samples)
        .warm_up_time(time / 4)
        .measurement_time(time)
        .nresamples(10_000)
        .configure_from_args()
}

/// Whether each bench runs once, as a test: as Criterion decides it.
pub fn is_test() -> bool {
    let given = |flag: &str| std::env::args().any(|a| a == flag);
    !given("--bench") || given("--test")
}

/// Worker threads: one a core of those this process may use (`taskset` says otherwise).
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The result, or the end with exit code 1: what is wrong has no time.
pub fn or_exit<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|e| {
        eprintln!("{e}");
        std::process::exit(1)
    })
}
