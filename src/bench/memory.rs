//! Memory of this process as the kernel counts it.

use serde::{Deserialize, Serialize};

/// Resident memory of a process: at its start, and the most it ever had. Allocators, code and stacks count too, which is
/// why only the difference says something of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Resident bytes before anything was allocated.
    pub start_rss_bytes: u64,
    /// Largest number of resident bytes up to now.
    pub peak_rss_bytes: u64,
}

impl Memory {
    /// Largest number of resident bytes above those at the start.
    pub fn above_start(&self) -> u64 {
        self.peak_rss_bytes.saturating_sub(self.start_rss_bytes)
    }
}

/// Resident bytes now (`VmRSS` of Linux); `None` where the system does not tell.
pub fn resident() -> Option<u64> {
    status("VmRSS")
}

/// Largest number of resident bytes since the process began (`VmHWM` of Linux).
pub fn peak() -> Option<u64> {
    status("VmHWM")
}

fn status(key: &str) -> Option<u64> {
    field(&std::fs::read_to_string("/proc/self/status").ok()?, key)
}

/// `key:   123 kB` in bytes.
fn field(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_by_their_whole_name() {
        let text = "Name:\tx\nVmHWMx:\t1 kB\nVmHWM:\t  2048 kB\nVmRSS:\t7 MB\n";
        assert_eq!(field(text, "VmHWM"), Some(2048 * 1024));
        assert_eq!(field(text, "VmRSS"), None, "another unit is not guessed at");
        assert_eq!(field(text, "VmPeak"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_peak_sees_what_was_freed_again() {
        // Other tests in this process may give memory back meanwhile: then once more.
        let seen = (0..9).any(|_| {
            let (before, now) = (peak().unwrap(), resident().unwrap());
            // Beyond every earlier peak; the other tests may have grown past it between the two readings.
            let size = before.saturating_sub(now) as usize + (64 << 20);
            let block = vec![1u8; size];
            assert!(std::hint::black_box(&block)[size / 2] == 1);
            drop(block);
            peak().unwrap() >= before + (32 << 20)
        });
        assert!(seen);
    }
}
