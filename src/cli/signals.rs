//! Ctrl-C, SIGTERM and SIGUSR1 (Slurm's warning before it ends a job) ask a run to stop with a checkpoint; a second one
//! ends the process at once.

use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// From now on these signals set the flag; when it is set already they end the process with 128 + the signal's number.
pub(super) fn stop_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in SIGNALS {
        // In this order: the first signal finds the flag unset and then sets it.
        signal_hook::flag::register_conditional_shutdown(*signal, 128 + *signal, flag.clone())
            .and_then(|_| signal_hook::flag::register(*signal, flag.clone()))
            .map_err(|e| Error::Failed(format!("cannot watch for signal {signal}: {e}")))?;
    }
    Ok(flag)
}

#[cfg(unix)]
const SIGNALS: &[i32] = &[signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGUSR1];
#[cfg(not(unix))]
const SIGNALS: &[i32] = &[signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM];

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use signal_hook::low_level::raise;
    use std::sync::atomic::Ordering;

    /// Run in a process of its own by the test below.
    #[test]
    fn child_raises_a_signal_twice() {
        let Some(signal) = std::env::var("SPARSE_ENGINE_TEST_SIGNAL").ok().and_then(|s| s.parse().ok()) else { return };
        let flag = stop_flag().unwrap();
        assert!(!flag.load(Ordering::SeqCst));
        raise(signal).unwrap();
        assert!(flag.load(Ordering::SeqCst));
        println!("the first one asks");
        raise(signal).unwrap();
        println!("still there");
    }

    #[test]
    fn the_first_signal_asks_and_the_second_one_ends() {
        for signal in SIGNALS {
            let out = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "cli::signals::tests::child_raises_a_signal_twice", "--nocapture"])
                .env("SPARSE_ENGINE_TEST_SIGNAL", signal.to_string())
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&out.stdout);
            assert!(text.contains("the first one asks") && !text.contains("still there"), "{signal}: {text}");
            assert_eq!(out.status.code(), Some(128 + signal));
        }
    }
}
