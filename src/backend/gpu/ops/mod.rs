//! One launcher a kernel: same stem as its `.cu`, same argument order.

pub mod operand;
pub mod sgd;
pub mod state;
