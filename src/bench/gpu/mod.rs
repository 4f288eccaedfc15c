//! What is measured otherwise on a GPU: whole steps in graphs, and what the device can do at most.

mod data;
pub mod peaks;
mod runner;
pub mod step;
