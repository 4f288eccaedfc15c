//! [`GpuBackend`]: the backend over a device driver and a host backend.

use super::driver::Driver;
use super::ops::operand::Element;
use super::ops::sgd::{SgdStore, sgd_step};
use super::ops::state::StepState;
use crate::backend::{
    Backend, BatchLoss, Bytes, ConvId, Grad, GradDst, Input, NormId, PoolId, SgdStep, Spec, Store, TensorId,
};
use crate::error::{Error, Result};

/// Runs the SGD step on device `D`; every other op, so far, on the host backend `H`, whose tensors and running
/// statistics are the ones used.
///
/// Values are held on both sides and kept equal; gradients arise on the host and are uploaded for the step; momentum
/// lives on the device (the host backend's own stays unused). A step therefore moves 8 bytes a stored parameter over
/// the bus: this is a beginning, not yet fast.
///
/// # Panics
/// The methods of [`Backend`] cannot return errors: a device that fails in the middle of a run panics with the
/// driver's answer, as there is nothing left to go on with.
pub struct GpuBackend<D: Driver, H: Backend<Real = f32>> {
    driver: D,
    host: H,
    values: D::Buf,
    grads: D::Buf,
    momentum: D::Buf,
    state: D::Buf,
    stored: usize,
}

impl<D: Driver, H: Backend<Real = f32>> GpuBackend<D, H> {
    /// Takes over `host`'s values and momentum. [`Error::Failed`] if the device lacks the memory.
    pub fn new(driver: D, host: H) -> Result<Self> {
        let stored = host.spec().stored();
        let bytes = stored * size_of::<f32>();
        let (mut values, grads, mut momentum) = (driver.alloc(bytes)?, driver.alloc(bytes)?, driver.alloc(bytes)?);
        driver.upload(&mut values, bytemuck::cast_slice(&host.read_store(Store::Values)))?;
        driver.upload(&mut momentum, bytemuck::cast_slice(&host.read_store(Store::Momentum)))?;
        let state = driver.alloc(size_of::<StepState>())?;
        Ok(GpuBackend { driver, host, values, grads, momentum, state, stored })
    }

    /// The host backend inside.
    pub fn host(&self) -> &H {
        &self.host
    }

    fn download(&self, buf: &D::Buf) -> Result<Vec<f32>> {
        let mut data = vec![0f32; self.stored];
        self.driver.download(buf, bytemuck::cast_slice_mut(&mut data))?;
        Ok(data)
    }

    fn try_sgd(&mut self, step: SgdStep) -> Result<()> {
        let grads = self.host.read_store(Store::Grads);
        self.driver.upload(&mut self.grads, bytemuck::cast_slice(&grads))?;
        self.driver.upload(&mut self.state, bytemuck::bytes_of(&StepState::from(step)))?;
        let [values, grads, momentum, state] =
            [&self.values, &self.grads, &self.momentum, &self.state].map(|buf| self.driver.address(buf));
        let store = SgdStore { values, n: self.stored as u64, ..SgdStore::default() };
        // SAFETY: live buffers of `stored` f32 and a state, waited for before anything else touches them.
        unsafe { sgd_step(&self.driver, Element::F32, &store, grads, momentum, state)? };
        self.driver.synchronise()?;
        let values = self.download(&self.values)?;
        self.host.write_store(Store::Values, &values);
        Ok(())
    }
}

/// See "Panics" of [`GpuBackend`].
fn must<T>(outcome: Result<T>) -> T {
    outcome.unwrap_or_else(|e: Error| panic!("{e}"))
}

impl<D: Driver, H: Backend<Real = f32>> Backend for GpuBackend<D, H> {
    type Real = f32;

    fn spec(&self) -> &Spec {
        self.host.spec()
    }

    fn describe(&self) -> String {
        format!("{} (sgd; other ops: {})", self.driver.describe(), self.host.describe())
    }

    /// Both sides: what the host backend holds, and the device's values, gradients and momentum.
    fn bytes(&self) -> Bytes {
        let device = (self.stored * size_of::<f32>()) as u64;
        let host = self.host.bytes();
        Bytes {
            values: host.values + device,
            gradients: host.gradients + device,
            momentum: host.momentum + device,
            ..host
        }
    }

    fn write_tensor(&mut self, t: TensorId, n: usize, nchw: &[f32]) {
        self.host.write_tensor(t, n, nchw);
    }

    fn read_tensor(&self, t: TensorId, n: usize) -> Vec<f32> {
        self.host.read_tensor(t, n)
    }

    fn read_store(&self, store: Store) -> Vec<f32> {
        match store {
            Store::Momentum => must(self.download(&self.momentum)),
            Store::Values | Store::Grads | Store::Running => self.host.read_store(store),
        }
    }

    fn write_store(&mut self, store: Store, data: &[f32]) {
        match store {
            Store::Momentum => {
                assert_eq!(data.len(), self.stored, "momentum store");
                must(self.driver.upload(&mut self.momentum, bytemuck::cast_slice(data)));
            }
            Store::Values => {
                self.host.write_store(store, data); // checks the length
                must(self.driver.upload(&mut self.values, bytemuck::cast_slice(data)));
            }
            Store::Grads | Store::Running => self.host.write_store(store, data),
        }
    }

    fn norm_stats(&mut self, norm: NormId, x: TensorId, n: usize) {
        self.host.norm_stats(norm, x, n);
    }

    fn norm_running(&mut self, norm: NormId) {
        self.host.norm_running(norm);
    }

    fn conv_forward(&mut self, conv: ConvId, x: Input, y: TensorId, stats: Option<NormId>, n: usize) {
        self.host.conv_forward(conv, x, y, stats, n);
    }

    fn conv_backward(&mut self, conv: ConvId, x: Input, dy: Grad, dx: Option<GradDst>, n: usize) {
        self.host.conv_backward(conv, x, dy, dx, n);
    }

    fn join_forward(&mut self, a: Input, b: Option<Input>, relu: bool, y: TensorId, n: usize) {
        self.host.join_forward(a, b, relu, y, n);
    }

    fn copy_backward(&mut self, dy: Grad, dx: GradDst, n: usize) {
        self.host.copy_backward(dy, dx, n);
    }

    fn pool_forward(&mut self, x: Input, y: TensorId, n: usize) {
        self.host.pool_forward(x, y, n);
    }

    fn pool_backward(&mut self, dy: Grad, dx: GradDst, n: usize) {
        self.host.pool_backward(dy, dx, n);
    }

    fn max_pool_forward(&mut self, pool: PoolId, x: Input, y: TensorId, n: usize) {
        self.host.max_pool_forward(pool, x, y, n);
    }

    fn max_pool_backward(&mut self, pool: PoolId, x: Input, dy: Grad, dx: GradDst, n: usize) {
        self.host.max_pool_backward(pool, x, dy, dx, n);
    }

    fn cross_entropy(
        &mut self,
        logits: TensorId,
        labels: &[u32],
        smoothing: f64,
        dlogits: Option<TensorId>,
        n: usize,
    ) -> BatchLoss {
        self.host.cross_entropy(logits, labels, smoothing, dlogits, n)
    }

    fn sgd(&mut self, step: SgdStep) {
        must(self.try_sgd(step));
    }
}
