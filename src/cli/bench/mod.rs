//! `bench`: timings that are verified first.

mod cases;
mod kernels;
mod step;
mod step_text;

use crate::error::Result;

/// Measures training steps and single operations; a result that is wrong has no time.
#[derive(clap::Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Step(step::StepArgs),
    Kernels(kernels::KernelsArgs),
}

pub(super) fn run(args: BenchArgs) -> Result<()> {
    match args.what {
        What::Step(args) => step::run(args),
        What::Kernels(args) => kernels::run(args),
    }
}
