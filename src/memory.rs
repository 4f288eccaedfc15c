//! The machine's memory: what cannot fit is refused with a reason, before the system kills the process.

use crate::error::{Error, Result};
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// # Errors
/// Fewer than `bytes` are free on this machine, or left of its container's limit. `what` takes them; `advice` says what to do.
pub(crate) fn check(bytes: u64, what: &str, advice: &str) -> Result<()> {
    // Less is nobody's concern, and asking the system takes time.
    const SMALL: u64 = 256 << 20;
    if bytes <= SMALL {
        return Ok(());
    }
    within(bytes, free(), what, advice)
}

fn within(bytes: u64, free: Option<u64>, what: &str, advice: &str) -> Result<()> {
    match free {
        Some(free) if bytes > free => {
            let gib = |n: u64| n as f64 / (1u64 << 30) as f64;
            Err(Error::Failed(format!(
                "out of memory: {what} would take {:.1} GiB, {:.1} GiB are free: {advice}",
                gib(bytes),
                gib(free)
            )))
        }
        _ => Ok(()),
    }
}

/// Bytes that a process can still have; `None` where the system does not say. Cached files count as free.
fn free() -> Option<u64> {
    let system = System::new_with_specifics(RefreshKind::nothing().with_memory(MemoryRefreshKind::everything()));
    if system.total_memory() == 0 {
        return None;
    }
    let machine = system.available_memory() + system.free_swap();
    let container = system.cgroup_limits().map(|c| c.total_memory.saturating_sub(c.rss) + c.free_swap);
    Some(container.map_or(machine, |container| machine.min(container)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_refused() {
        assert!(check(1, "one byte", "").is_ok());
        let error = check(1 << 60, "a dream", "wake up").unwrap_err().to_string();
        assert!(error.starts_with("out of memory: a dream would take 1073741824.0 GiB, "), "{error}");
        assert!(error.ends_with(" GiB are free: wake up"), "{error}");
        assert!(
            within(3, Some(3), "", "").is_ok()
                && within(4, Some(3), "", "").is_err()
                && within(4, None, "", "").is_ok()
        );
        assert!(free().is_none_or(|bytes| bytes > 1 << 20));
    }
}
