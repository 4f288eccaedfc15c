//! One file a subcommand: args -> config -> call.

pub mod inspect;

/// Parses the command line and runs it.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
