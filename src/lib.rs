//! A training engine for convolutional networks whose masks are drawn at random before training and never move.
//!
//! From the command line to a kernel:
//! [`cli`] -> [`train`] -> [`graph`] -> [`backend`] -> `backend/cpu/conv/mod.rs` or `backend/gpu/ops` -> `kernels/*.cu`.
//! Imports point only that way; `tests/arrows.rs` checks it.
#![deny(missing_docs)]

pub mod backend;
pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod data;
pub mod error;
pub mod graph;
mod memory;
pub mod metrics;
pub mod models;
pub mod optim;
pub mod report;
pub mod rng;
pub mod saliency;
pub mod shape;
pub mod sparsity;
pub mod train;
pub mod tune;

pub use error::{Error, Result};
