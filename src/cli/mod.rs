//! The command line, one file a subcommand: arguments -> configuration -> call. Nothing is computed here.

mod bench;
mod blocks;
mod configured;
mod device;
mod eval;
mod format;
pub mod inspect;
mod mask;
pub mod network;
mod plan_text;
mod progress;
mod recipes;
mod selftest;
mod signals;
mod table;
mod train;
mod tune;

use crate::error::{Error, Result};
use crate::report::Engine;
use clap::{Parser, Subcommand};
use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::sync::LazyLock;

static VERSION: LazyLock<String> = LazyLock::new(|| Engine::this().to_string());

/// Trains convolutional networks whose weights were pruned at random before training, and stores and computes only
/// those that are left.
#[derive(Parser)]
#[command(name = "sparse-engine", version = VERSION.as_str(), arg_required_else_help = true)]
#[command(after_help = "Start with:  sparse-engine train\n\
                        It trains a sparse ResNet-20 on images inside this program and shows what it did.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Train(train::TrainArgs),
    Eval(eval::EvalArgs),
    Inspect(inspect::InspectArgs),
    Bench(bench::BenchArgs),
    Tune(tune::TuneArgs),
    Recipes(recipes::RecipesArgs),
    Mask(mask::MaskArgs),
    Selftest(selftest::SelftestArgs),
}

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print(); // nobody is left to tell
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    let done = match cli.command {
        Command::Train(args) => train::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Tune(args) => tune::run(args),
        Command::Recipes(args) => recipes::run(args),
        Command::Mask(args) => mask::run(args),
        Command::Selftest(args) => selftest::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let prefix = if matches!(e, Error::Stopped { .. }) { "" } else { "error: " };
            let mut out = std::io::stderr().lock();
            for line in e.to_string().lines() {
                let _ = writeln!(out, "{prefix}{line}");
            }
            ExitCode::from(e.exit_code())
        }
    }
}

/// Writes to standard output. A reader that went away, such as `head`, is no error; a full disk is.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::io("standard output", "cannot write")(e)),
        _ => Ok(()),
    }
}

/// Worker threads: as asked for, or one a core.
fn threads(asked: Option<u16>) -> usize {
    asked.map_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()), usize::from)
}
