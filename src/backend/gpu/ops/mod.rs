//! One launcher a kernel: same stem as its `.cu`, same argument order.

pub mod conv;
mod conv_lists;
mod conv_plan;
pub mod operand;
pub mod sgd;
pub mod state;
