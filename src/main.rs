//! `sparse-engine`: thin main. Everything is in the library; only this file exits.
fn main() -> std::process::ExitCode {
    sparse_engine::cli::main()
}
