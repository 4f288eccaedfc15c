//! What is measured otherwise on a GPU: whole steps in graphs, and what the device can do at most.

pub mod peaks;
pub mod step;
