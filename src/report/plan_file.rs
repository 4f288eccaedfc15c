//! Plan files: how each layer runs on the CPU, as JSON with a line a layer. Documented in `docs/plan.md`.

use super::files;
use crate::backend::cpu::plan::{PLAN_VERSION, Plan};
use crate::backend::gpu::plan::{GPU_PLAN_VERSION, GpuPlan};
use crate::error::{Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Far more than the deepest network needs; a larger file is no plan and is not read to its end.
const LARGEST: u64 = 8 << 20;

/// Reads a plan. Whether it is for a network is checked where the network is known.
///
/// # Errors
/// A file that cannot be read, is too large, or is not a plan of this version, unknown keys included.
pub fn read_plan(path: &Path) -> Result<Plan> {
    read(path, PLAN_VERSION, "sparse-engine tune writes one, docs/plan.md describes it")
}

/// Reads a plan for a GPU.
///
/// # Errors
/// As [`read_plan`].
pub fn read_gpu_plan(path: &Path) -> Result<GpuPlan> {
    read(path, GPU_PLAN_VERSION, "a run on a GPU leaves one in plan-cuda.json, docs/plan.md describes it")
}

fn read<T: serde::de::DeserializeOwned>(path: &Path, wanted: u32, hint: &str) -> Result<T> {
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes));
    read.map_err(Error::io(path, "cannot read the plan"))?;
    if bytes.len() as u64 > LARGEST {
        return Err(Error::data(path, format!("no plan: wanted at most {} MiB", LARGEST >> 20)));
    }
    let bad = |e: serde_json::Error| {
        let what: String = e.to_string().chars().take(300).map(|c| if c.is_control() { ' ' } else { c }).collect();
        Error::data(path, format!("no plan: {what}; {hint}"))
    };
    let Version { version } = serde_json::from_slice(&bytes).map_err(bad)?;
    if version != wanted {
        return Err(Error::data(path, format!("plan of version {version}, this engine reads {wanted}")));
    }
    serde_json::from_slice(&bytes).map_err(bad)
}

/// Writes a plan, replacing an older file only when the new one is whole.
///
/// # Errors
/// A place that cannot be written.
pub fn write_plan(path: &Path, plan: &Plan) -> Result<()> {
    let text = plan_text(plan).map_err(|e| Error::Failed(format!("{}: {e}", path.display())))?;
    files::replace(path, "cannot write the plan", |w| w.write_all(text.as_bytes()))
}

/// Writes a plan for a GPU, as [`write_plan`].
///
/// # Errors
/// As [`write_plan`].
pub fn write_gpu_plan(path: &Path, plan: &GpuPlan) -> Result<()> {
    let text = lines_text(&GpuPlan { layers: vec![], ..plan.clone() }, &plan.layers);
    let text = text.map_err(|e| Error::Failed(format!("{}: {e}", path.display())))?;
    files::replace(path, "cannot write the plan", |w| w.write_all(text.as_bytes()))
}

fn plan_text(plan: &Plan) -> serde_json::Result<String> {
    lines_text(&Plan { layers: vec![], ..plan.clone() }, &plan.layers)
}

/// Indented, but a layer a line. `head`: the plan without layers, which come last in it.
fn lines_text<L: serde::Serialize>(head: &impl serde::Serialize, layers: &[L]) -> serde_json::Result<String> {
    let head = serde_json::to_string_pretty(head)?;
    let lines = layers.iter().map(|l| Ok(format!("    {}", serde_json::to_string(l)?)));
    let lines = lines.collect::<serde_json::Result<Vec<_>>>()?;
    Ok(match (head.strip_suffix("[]\n}"), lines.is_empty()) {
        (Some(head), false) => format!("{head}[\n{}\n  ]\n}}\n", lines.join(",\n")),
        _ => head + "\n",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::plan::{Kernel, Tuned};
    use crate::shape::ConvGeom;

    fn sample() -> Plan {
        let g = |c, k, r, stride| ConvGeom { c, h: 32, w: 32, k, r, s: r, stride, pad: r / 2 };
        let layers = [("conv", g(3, 16, 3, 1), 60), ("segment1.\"x\"\n", g(16, 32, 1, 2), 512)];
        let mut plan = Plan::of(layers);
        plan.layers[0].plan.cut = [3, 2];
        plan.layers[1].plan.weight = Kernel::Dense;
        plan
    }

    fn refused(text: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a plan.json");
        std::fs::write(&path, text).unwrap();
        let e = read_plan(&path).unwrap_err();
        assert_eq!(e.exit_code(), 1);
        let text = e.to_string();
        assert!(text.starts_with(path.to_str().unwrap()) && text.lines().count() == 1, "{text}");
        text
    }

    #[test]
    fn reads_back_with_a_line_a_layer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.json");
        let tuned = Tuned { machine: "a \\ b".into(), isa: "avx2+fma".into(), threads: 2, batch: 128 };
        for plan in [sample(), Plan { tuned: Some(tuned), ..sample() }, Plan { layers: vec![], ..sample() }] {
            write_plan(&path, &plan).unwrap();
            assert_eq!(read_plan(&path).unwrap(), plan);
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text.lines().filter(|l| l.contains("\"layer\":")).count(), plan.layers.len(), "{text}");
            assert!(text.ends_with("}\n") && serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
        }
    }

    #[test]
    fn what_is_no_plan_is_refused_in_one_line() {
        let good = plan_text(&sample()).unwrap();
        let cuts = (0..good.len() - 2).step_by(7);
        for cut in cuts {
            assert!(refused(&good.as_bytes()[..cut]).contains("no plan: "), "cut at {cut}");
        }
        let swapped = |from: &str, to: &str| {
            assert!(good.contains(from), "{from}");
            refused(good.replace(from, to).as_bytes())
        };
        for (from, to, wanted) in [
            ("\"version\": 1", "\"version\": 2", "plan of version 2, this engine reads 1"),
            ("\"version\": 1", "\"version\": -1", "invalid value"),
            ("\"version\": 1,", "", "missing field `version`"),
            ("\"layers\"", "\"layer\\ns\"", "unknown field"),
            ("\"tile\"", "\"tiles\"", "unknown field `tiles`"),
            ("\"tile\":7", "\"tile\":7,\"tile\":7", "duplicate field `tile`"),
            ("\"tile\":7", "\"tile\":7.5", "invalid type: floating point"),
            ("\"tile\":7", "\"tile\":1e99", "invalid"),
            ("\"cut\":[3,2]", "\"cut\":[3]", "invalid length 1"),
            ("\"cut\":[3,2]", "\"cut\":[3,-2]", "invalid value"),
            ("\"dense\"", "\"denser\"", "unknown variant `denser`"),
            ("\"dense\"", "null", "expected value"),
            ("\"weights\":60", "\"weights\":\"60\"", "invalid type: string"),
        ] {
            let text = swapped(from, to);
            assert!(text.contains(wanted), "{from} -> {to}: {text}");
        }
        for (text, wanted) in [
            (&b"\xff\xfe"[..], "no plan"),
            (b"[1]", "no plan"),
            (b"null", "no plan"),
            (&[b'['; 100_000], "no plan"),
            (&vec![b' '; LARGEST as usize + 1], "at most 8 MiB"),
        ] {
            assert!(refused(text).contains(wanted), "{wanted}: {}", refused(text));
        }
        let folder = tempfile::tempdir().unwrap();
        for (path, doing) in
            [(folder.path().join("none"), "cannot read the plan"), (folder.path().into(), "cannot read")]
        {
            let e = read_plan(&path).unwrap_err();
            assert!(e.exit_code() == 1 && e.to_string().contains(doing), "{e}");
        }
        assert!(write_plan(&folder.path().join("no/plan.json"), &sample()).is_err());
    }
}
