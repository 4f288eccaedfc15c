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
