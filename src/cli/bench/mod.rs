//! `bench`: timings that are verified first.

mod step;
mod step_text;
mod table;

use crate::error::Result;

/// Measures the speed of training steps; a result that is wrong has no time.
#[derive(clap::Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Step(step::StepArgs),
}

pub(super) fn run(args: BenchArgs) -> Result<()> {
    match args.what {
        What::Step(args) => step::run(args),
    }
}
