//! `sparse-engine selftest`.

use super::device::DeviceArgs;
use crate::backend::cpu::CpuBackend;
use crate::backend::gpu::{Driver, GpuBackend, Precision, cuda::Cuda};
use crate::backend::{Backend, Spec};
use crate::bench::Verified;
use crate::bench::selftest::{Case, cases, check};
use crate::error::{Error, Result};
use crate::report::Engine;
use crate::train::Device;
use serde_json::json;

/// Checks every operation on a device against f64 arithmetic.
///
/// Small networks take a training step each; every result of every operation is recomputed from its own operands. On a GPU
/// that is done in each precision, or in the one given. Exit code 1 if a number is wrong: the first one is named.
#[derive(clap::Args)]
#[command(mut_arg("loss_scale", |scale| scale.hide(true)))]
#[command(mut_arg("precision", |kind| kind.help("Numbers on the GPU: fp16, bf16, tf32 or f32 [default: each in turn]")))]
#[command(after_help = "Examples:\n  sparse-engine selftest --device cuda\n  \
                        sparse-engine selftest --device cpu --json\n\nKeys of the JSON object: docs/bench.md.")]
pub(super) struct SelftestArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// Worker threads, on the CPU [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A line of the result.
struct Row {
    case: &'static str,
    precision: Option<Precision>,
    verified: Verified,
}

pub(super) fn run(args: SelftestArgs) -> Result<()> {
    let on = args.device.resolve()?;
    if on.loss_scale.is_some() {
        return Err(Error::Usage("selftest checks steps without a loss scale: leave --loss-scale out".into()));
    }
    let found = on.found()?;
    let threads = super::threads(args.threads);
    let precisions = on.precision.map_or(Precision::ALL.to_vec(), |p| vec![p]);
    let (mut rows, mut device) = (vec![], String::new());
    let mut note = |name: String| device = name;
    for case in cases()? {
        let mut on_gpu = |make: &mut dyn FnMut(&Case, Precision) -> Result<Verified>| -> Result<()> {
            for &precision in &precisions {
                let verified = make(&case, precision)?;
                rows.push(Row { case: case.name, precision: Some(precision), verified });
            }
            Ok(())
        };
        match found {
            Device::Cuda => on_gpu(&mut |case, p| {
                check(case, |spec: Spec| {
                    let b = GpuBackend::new(Cuda::open()?, spec, p, None)?;
                    note(b.driver().describe());
                    Ok(b)
                })
            })?,
            #[cfg(feature = "emu")]
            Device::Emulated => on_gpu(&mut |case, p| {
                use crate::backend::gpu::emu::{Emulated, Order};
                check(case, |spec: Spec| {
                    let b = GpuBackend::new(Emulated::new(Order::Ascending)?, spec, p, None)?;
                    note(b.driver().describe());
                    Ok(b)
                })
            })?,
            Device::Auto | Device::Cpu => {
                let verified = check(&case, |spec: Spec| {
                    let b = CpuBackend::new(spec, threads)?;
                    note(b.describe());
                    Ok(b)
                })?;
                rows.push(Row { case: case.name, precision: None, verified });
            }
        }
    }
    super::print(&if args.json { object(&device, &rows) } else { text(&device, &rows) })
}

fn object(device: &str, rows: &[Row]) -> String {
    let row =
        |r: &Row| json!({ "case": r.case, "precision": r.precision.map(|p| p.to_string()), "verified": r.verified });
    let rows: Vec<_> = rows.iter().map(row).collect();
    let Engine { version, commit, dirty } = Engine::this();
    let all = json!({
        "schema": 1, "version": version, "commit": commit, "dirty": dirty, "device": device, "cases": rows,
    });
    format!("{all:#}\n")
}

fn text(device: &str, rows: &[Row]) -> String {
    let mut out = format!("{device}; sparse-engine {}\n", Engine::this());
    for r in rows {
        let precision = r.precision.map_or("f32".into(), |p| p.to_string());
        let Verified { operations, values, worst } = r.verified;
        out += &format!(
            "  {:44} {precision:5} {operations:4} operations, {values:7} numbers, largest error {:5.1} % of what rounding may do\n",
            r.case,
            100.0 * worst
        );
    }
    out + "all right\n"
}
