//! [`Backend`] of [`GpuBackend`]: each method is the fallible one of `operations.rs` or `backend.rs`, which must not fail.

use super::backend::GpuBackend;
use super::driver::Driver;
use super::ops::operand::Precision;
use crate::backend::{
    Backend, BatchLoss, Bytes, ConvId, Grad, GradDst, Input, NormId, PoolId, Rounding, SgdStep, Spec, Store, TensorId,
};
use crate::error::{Error, Result};

/// See "Panics" of [`GpuBackend`].
pub(super) fn must<T>(outcome: Result<T>) -> T {
    outcome.unwrap_or_else(|e: Error| panic!("{e}"))
}

impl<D: Driver> Backend for GpuBackend<D> {
    type Real = f32;

    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn describe(&self) -> String {
        let vendor = match self.convs.vendor() {
            (_, "") => String::new(),
            (_, name) => format!(", {name}"),
        };
        format!("{}, {}{vendor}", self.driver.describe(), self.precision)
    }

    fn bytes(&self) -> Bytes {
        self.held()
    }

    fn rounding(&self) -> Rounding {
        match self.precision {
            Precision::F32 => Rounding { eps: f64::from(f32::EPSILON), tiny: 0.0 },
            Precision::Tf32 => Rounding { eps: 2f64.powi(-10), tiny: 0.0 },
            Precision::F16 => Rounding { eps: 2f64.powi(-10), tiny: 2f64.powi(-24) },
            Precision::Bf16 => Rounding { eps: 2f64.powi(-7), tiny: 0.0 },
        }
    }

    fn write_tensor(&mut self, t: TensorId, n: usize, nchw: &[f32]) {
        must(self.try_write(t, n, nchw));
    }

    fn read_tensor(&self, t: TensorId, n: usize) -> Vec<f32> {
        must(self.try_read(t, n))
    }

    fn read_store(&self, store: Store) -> Vec<f32> {
        must(self.try_read_store(store))
    }

    fn write_store(&mut self, store: Store, data: &[f32]) {
        must(self.try_store(store, data));
    }

    fn norm_stats(&mut self, norm: NormId, x: TensorId, n: usize) {
        must(self.try_norm_stats(norm, x, n));
    }

    fn norm_running(&mut self, norm: NormId) {
        must(self.try_norm_running(norm));
    }

    fn conv_forward(&mut self, conv: ConvId, x: Input, y: TensorId, stats: Option<NormId>, n: usize) {
        must(self.try_conv_forward(conv, x, y, stats, n));
    }

    fn conv_backward(&mut self, conv: ConvId, x: Input, dy: Grad, dx: Option<GradDst>, n: usize) {
        must(self.try_conv_backward(conv, x, dy, dx, n));
    }

    fn conv_data_backward(&mut self, conv: ConvId, dy: Grad, dx: GradDst, n: usize) {
        must(self.start_data_gradient(conv, dy, dx, n));
    }

    fn join_forward(&mut self, a: Input, b: Option<Input>, relu: bool, y: TensorId, n: usize) {
        must(self.try_join(a, b, relu, y, n));
    }

    fn copy_backward(&mut self, dy: Grad, dx: GradDst, n: usize) {
        must(self.try_copy(dy, dx, n));
    }

    fn pool_forward(&mut self, x: Input, y: TensorId, n: usize) {
        must(self.try_pool_forward(x, y, n));
    }

    fn pool_backward(&mut self, dy: Grad, dx: GradDst, n: usize) {
        must(self.try_pool_backward(dy, dx, n));
    }

    fn max_pool_forward(&mut self, pool: PoolId, x: Input, y: TensorId, n: usize) {
        must(self.try_max_pool_forward(pool, x, y, n));
    }

    fn max_pool_backward(&mut self, pool: PoolId, x: Input, dy: Grad, dx: GradDst, n: usize) {
        must(self.try_max_pool_backward(pool, x, dy, dx, n));
    }

    fn cross_entropy(
        &mut self,
        logits: TensorId,
        labels: &[u32],
        smoothing: f64,
        dlogits: Option<TensorId>,
        n: usize,
    ) -> BatchLoss {
        must(self.try_cross_entropy(logits, labels, smoothing, dlogits, n))
    }

    fn sgd(&mut self, step: SgdStep) {
        must(self.try_sgd(step));
    }

    fn gradient_scale(&self) -> f64 {
        f64::from(must(self.state()).grads_scale)
    }

    fn wait(&self) {
        must(self.driver.synchronise());
    }
}
