//! What may not happen while launches are recorded, the same on every driver. A CUDA graph would fail on some of it, and
//! silently not do the rest when it is replayed.

use crate::error::{Error, Result};
use std::sync::{Mutex, MutexGuard};

/// Whether a device is recording, and what went wrong in it. Shared by the device and its buffers.
#[derive(Default)]
pub(super) struct Gate(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    Open,
    Recording {
        fault: Option<String>,
    },
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// An error if a capture is going on, which then fails with this error too.
    pub(super) fn refuse(&self, call: &str) -> Result<()> {
        match &mut *self.state() {
            State::Open => Ok(()),
            State::Recording { fault } => {
                let said = format!("{call} inside the capture of a graph, which may hold launches only");
                fault.get_or_insert_with(|| said.clone());
                Err(Error::Failed(said))
            }
        }
    }

    /// Drivers that record by themselves ask.
    #[cfg(feature = "emu")]
    pub(super) fn is_recording(&self) -> bool {
        matches!(*self.state(), State::Recording { .. })
    }

    /// Starts a capture, until the answer is finished or dropped.
    pub(super) fn begin(&self) -> Result<Recording<'_>> {
        self.refuse("capture")?;
        *self.state() = State::Recording { fault: None };
        Ok(Recording(self))
    }
}

/// A capture that goes on.
pub(super) struct Recording<'a>(&'a Gate);

impl Recording<'_> {
    /// Ends it; `outcome` of what was recorded, else the first call that was refused.
    pub(super) fn finish(self, outcome: Result<()>) -> Result<()> {
        let fault = match &mut *self.0.state() {
            State::Open => None,
            State::Recording { fault } => fault.take(),
        };
        outcome?;
        fault.map_or(Ok(()), |said| Err(Error::Failed(said)))
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        *self.0.state() = State::Open;
    }
}
