//! Benchmarks that verify before they time: a step or an operation whose result is wrong has no time.
//!
//! [`step`] times training steps of a sparse network beside the same network dense, [`kernels`] one operation at a time;
//! [`peaks`] measures what the machine can do at most; [`gpu`] does all of it on a GPU. What was measured comes back as plain
//! structs; printing is the command line's.

mod check;
pub mod gpu;
pub mod kernels;
pub mod memory;
pub mod peaks;
mod phases;
pub mod selftest;
mod stats;
pub mod step;

pub use check::Verified;
pub use phases::Phase;
pub use stats::Spread;
