//! A convolution that was checked and is timed by other means than [`run`](super::run), such as the Criterion benches.

use super::layer::{Copies, Layer};
use super::{Case, Op, Widths};
use crate::backend::{Backend, Spec};
use crate::error::Result;

/// What a training step computes of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Forward, with the statistics of what it writes.
    Forward,
    /// Weight gradient alone, as of a first layer.
    WeightGradient,
    /// Weight and data gradient, which the backend computes in one operation.
    BothGradients,
}

impl Pass {
    /// Every pass with its name.
    pub const ALL: [(&'static str, Pass); 3] = [
        ("forward", Pass::Forward),
        ("weight_gradient", Pass::WeightGradient),
        ("both_gradients", Pass::BothGradients),
    ];
}

impl Case {
    /// FLOPs and bytes of a call, counted as in [`Report`](super::Report); `op` does not matter.
    pub fn work(&self, pass: Pass) -> (u64, u64) {
        let of = |op| Case { op, ..*self };
        let g = &self.geom;
        let weights = [g.k, g.c, g.r, g.s].map(u64::from).iter().product();
        let nnz = self.density.budget(weights).max(1) as usize;
        let flops = of(Op::ConvFwd).flops(nnz);
        match pass {
            Pass::Forward => (flops, of(Op::ConvFwd).bytes(nnz, Widths::CPU)),
            Pass::WeightGradient => (flops, of(Op::ConvWgrad).bytes(nnz, Widths::CPU)),
            // The weight gradient reads nothing else, and writes itself.
            Pass::BothGradients => (2 * flops, of(Op::ConvDgrad).bytes(nnz, Widths::CPU) + 4 * nnz as u64),
        }
    }
}

/// A convolution whose passes were checked in f64.
pub struct CheckedConv<B: Backend>(Layer<B>);

impl<B: Backend> CheckedConv<B> {
    /// The layer of `case` on the backend that `make` builds; `op`, `time` and `crossover` do not matter.
    ///
    /// # Errors
    /// A layer no backend takes; a wrong result in any pass.
    pub fn new(case: &Case, make: &dyn Fn(Spec) -> Result<B>) -> Result<Self> {
        // Of the operations this one has all passes checked: the gradients go through the norm of what forward wrote.
        let mut layer = Layer::new(&Case { op: Op::ConvDgrad, ..*case }, case.density, Copies::CPU, make)?;
        layer.verify()?;
        Ok(CheckedConv(layer))
    }

    /// One call, on tensors that were not touched last.
    pub fn call(&mut self, pass: Pass) {
        self.0.pass(pass);
    }
}
