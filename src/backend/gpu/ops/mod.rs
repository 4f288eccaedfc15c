//! One launcher a kernel: same stem as its `.cu`, same argument order.

pub mod augment;
pub mod conv;
mod conv_kernels;
mod conv_lists;
mod conv_plan;
pub mod copy;
pub mod gather;
pub mod join;
pub mod loss;
pub mod maxpool;
pub mod norm;
pub mod operand;
pub mod peak;
pub mod pool;
mod rows;
pub mod sgd;
pub mod state;
pub mod step;
