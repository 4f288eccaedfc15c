//! What the run ran on.

use serde::{Deserialize, Serialize};

/// A machine, as far as it tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// CPU model, such as "AMD EPYC 7763 64-Core Processor"; the architecture where the system does not name it.
    pub cpu: String,
    /// Cores this process may use.
    pub cores: usize,
    /// Operating system, such as "Debian GNU/Linux 12 (bookworm)".
    pub os: String,
    /// Instruction set family, such as "x86_64".
    pub arch: String,
}

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let arch = std::env::consts::ARCH.to_string();
        Machine {
            cpu: field(&read("/proc/cpuinfo"), "model name", ':').unwrap_or_else(|| arch.clone()),
            cores: std::thread::available_parallelism().map_or(1, |n| n.get()),
            os: field(&read("/etc/os-release"), "PRETTY_NAME", '=').unwrap_or_else(|| std::env::consts::OS.to_string()),
            arch,
        }
    }
}

/// The value of the first line `name SEPARATOR value`, without quotes.
fn field(text: &str, name: &str, separator: char) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(separator)?;
        let value = value.trim().trim_matches('"');
        (key.trim() == name && !value.is_empty()).then(|| value.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "model\t: 7\nmodel name\t: A  CPU: 3 GHz\nmodel name\t: other\n";
        assert_eq!(field(text, "model name", ':').as_deref(), Some("A  CPU: 3 GHz"));
        assert_eq!(
            field("X_PRETTY_NAME=\"no\"\nPRETTY_NAME=\"Some OS 1\"\n", "PRETTY_NAME", '=').as_deref(),
            Some("Some OS 1")
        );
        assert_eq!(field("PRETTY_NAME=\n", "PRETTY_NAME", '='), None);
    }

    #[test]
    fn this_machine_has_cores_and_names() {
        let m = Machine::this();
        assert!(m.cores >= 1 && !m.cpu.is_empty() && !m.os.is_empty() && !m.arch.is_empty(), "{m:?}");
    }
}
