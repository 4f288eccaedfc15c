//! A part of the build script: what ptxas says that kernels need.

use super::{Outcome, put};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// One row of the table that ptxas -v gives: what one kernel needs on one target.
pub struct Resource {
    pub kernel: String,
    pub target: String,
    /// Registers, then bytes: static shared memory, stack, spill stores, spill loads.
    pub numbers: [u32; 5],
}

impl Resource {
    pub const COLUMNS: [&str; 7] = ["kernel", "target", "registers", "shared", "stack", "spill_stores", "spill_loads"];

    pub fn fields(&self) -> [String; 7] {
        let [a, b, c, d, e] = self.numbers.map(|n| n.to_string());
        [self.kernel.clone(), self.target.clone(), a, b, c, d, e]
    }

    pub fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_whitespace();
        let (kernel, target) = (fields.next()?.to_string(), fields.next()?.to_string());
        let mut numbers = [0; 5];
        for number in &mut numbers {
            *number = fields.next()?.parse().ok()?;
        }
        Some(Resource { kernel, target, numbers })
    }
}

/// Reads what `ptxas -v` said. A function's properties follow its name; only entry functions say for which target.
pub fn resources(said: &str) -> Vec<Resource> {
    let quoted = |text: &str| text.split('\'').nth(1).unwrap_or_default().to_string();
    let mut found: Vec<Resource> = Vec::new();
    let mut of_entry = false;
    for line in said.lines() {
        // "160 bytes stack frame, 0 bytes spill stores", "Used 39 registers, 512 bytes smem"
        let number = |what: &str| -> Option<u32> {
            let before = &line[..line.find(what)?];
            before.rsplit(' ').next()?.parse().ok()
        };
        if let Some((_, rest)) = line.split_once("Compiling entry function ") {
            let (kernel, target) = rest.split_once(" for ").unwrap_or((rest, ""));
            found.push(Resource { kernel: quoted(kernel), target: quoted(target), numbers: [0; 5] });
        } else if let Some((_, function)) = line.split_once("Function properties for ") {
            of_entry = found.last().is_some_and(|f| f.kernel == function.trim());
        }
        let Some(Resource { numbers, .. }) = found.last_mut().filter(|_| of_entry) else { continue };
        if line.contains(" bytes stack frame") {
            let properties = [" bytes stack frame", " bytes spill stores", " bytes spill loads"];
            for (place, what) in numbers[2..].iter_mut().zip(properties) {
                *place = number(what).unwrap_or(0);
            }
        } else if line.contains(" registers") && line.contains("Used ") {
            numbers[0] = number(" registers").unwrap_or(0);
            numbers[1] = number(" bytes smem").unwrap_or(0);
            numbers[2] = number(" bytes cumulative stack size").unwrap_or(numbers[2]);
        }
    }
    found
}

pub fn table_path(cached: &Path) -> PathBuf {
    cached.with_extension("resources")
}

/// For people: aligned columns.
pub fn write_table(path: &Path, rows: &[Resource]) -> Outcome<()> {
    let header = Resource::COLUMNS.map(String::from);
    let lines: Vec<[String; 7]> = std::iter::once(header).chain(rows.iter().map(Resource::fields)).collect();
    let widths: [usize; 7] = std::array::from_fn(|i| lines.iter().map(|l| l[i].len()).max().unwrap_or(0));
    let mut text = String::new();
    for line in &lines {
        let _ = write!(text, "{:<w$}  {:<v$}", line[0], line[1], w = widths[0], v = widths[1]);
        for (field, width) in line[2..].iter().zip(&widths[2..]) {
            let _ = write!(text, "  {field:>width$}");
        }
        text.push('\n');
    }
    put(path, text.as_bytes())
}
