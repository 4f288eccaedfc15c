//! [`GpuBackend`]: every operation is a few launches on one stream of a device driver.

use super::convs::Convs;
use super::driver::Driver;
use super::layout::{Layout, Tensor, to_device, to_host};
use super::norms::Norms;
use super::ops::maxpool::{self, MaxPool};
use super::ops::operand::{BLOCK_ROWS, Element, Finish, Operand, Precision, Reduce};
use super::ops::state::StepState;
use super::ops::{copy, join, loss, norm, pool};
use super::plan::GpuPlan;
use crate::backend::{
    BatchLoss, Bytes, ConvId, Grad, GradDst, Input, Mask, NormId, ParamId, PoolId, SgdStep, Spec, Store, TensorId,
    Write,
};
use crate::error::Result;
use std::sync::Arc;

/// A network on device `D`. Values, gradients and momentum are f32 and exist for the stored parameters only; tensors and the
/// dense operand copies of the weights have the precision's type; sums and statistics are f32.
///
/// # Panics
/// The methods of [`Backend`] cannot return errors: a device that fails in the middle of a run panics with the
/// driver's answer, as there is nothing left to go on with.
pub struct GpuBackend<D: Driver> {
    pub(super) driver: Arc<D>,
    pub(super) spec: Spec,
    pub(super) precision: Precision,
    pub(super) layout: Layout,
    arena: D::Buf,
    values: D::Buf,
    grads: D::Buf,
    momentum: D::Buf,
    running: D::Buf,
    pub(super) norms: Norms<D>,
    pub(super) convs: Convs<D>,
    scratch: D::Buf,
    /// Bytes of one of the three parts of `scratch`.
    part: usize,
    pub(super) labels: D::Buf,
    image_loss: D::Buf,
    batch_loss: D::Buf,
    pub(super) state: D::Buf,
    /// Whether running statistics wait for the end of the step.
    pub(super) running_later: bool,
}

impl<D: Driver> GpuBackend<D> {
    /// Allocates everything a step needs. `plan`: how convolutions run; `None`: by rule.
    ///
    /// # Errors
    /// A device without the memory, a network beyond the kernels' limits, a plan of another network.
    pub fn new(driver: D, spec: Spec, precision: Precision, plan: Option<&GpuPlan>) -> Result<Self> {
        let stored = 4 * spec.stored();
        let zeroed = |bytes: usize| -> Result<D::Buf> {
            let mut buf = driver.alloc(bytes)?;
            driver.fill(&mut buf, 0)?;
            Ok(buf)
        };
        let layout = Layout::new(&spec, precision.element())?;
        let arena = driver.alloc(layout.bytes)?;
        let [values, grads, momentum] = [zeroed(stored)?, zeroed(stored)?, zeroed(stored)?];
        let running = zeroed(4 * spec.running())?;
        let [v, g, r] = [&values, &grads, &running].map(|buf| driver.address(buf));
        let norms = Norms::new(&driver, &spec, v, g, r)?;
        let convs = Convs::new(&driver, &spec, precision, plan)?;
        // Partial statistics, or the partial sums of two norms; and beside them the parts of a weight gradient.
        let blocks = |t: &Tensor| {
            let pool =
                MaxPool { n: spec.batch as u32, h: t.plane.h, w: t.plane.w, size: 1, stride: 1, pad: 0, cp: t.cp };
            let pooled = if spec.pools.is_empty() { 0 } else { pool.blocks() };
            t.rows(spec.batch).div_ceil(BLOCK_ROWS).max(pooled) as usize
        };
        let sums = layout.tensors.iter().map(|t| blocks(t) * t.cp as usize * 8).max().unwrap_or(0);
        let part = [sums, convs.scratch_bytes(), convs.sums_bytes(spec.batch)].into_iter().max().unwrap_or(0);
        let part = part.next_multiple_of(256);
        let scratch = driver.alloc(3 * part)?;
        let (labels, image_loss) =
            (driver.alloc(4 * spec.batch)?, driver.alloc(size_of::<loss::RowLoss>() * spec.batch)?);
        let batch_loss = driver.alloc(size_of::<loss::LossOut>())?;
        let mut state = driver.alloc(size_of::<StepState>())?;
        driver.upload(
            &mut state,
            bytemuck::bytes_of(&StepState { loss_scale: 1.0, unscale: 1.0, ..Default::default() }),
        )?;
        Ok(GpuBackend {
            driver: Arc::new(driver),
            spec,
            precision,
            layout,
            arena,
            values,
            grads,
            momentum,
            running,
            norms,
            convs,
            scratch,
            part,
            labels,
            image_loss,
            batch_loss,
            state,
            running_later: false,
        })
    }

    /// The device.
    pub fn driver(&self) -> &Arc<D> {
        &self.driver
    }

    /// What tensors and factors are rounded to.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// How convolutions run.
    pub fn plan(&self) -> &GpuPlan {
        self.convs.plan()
    }

    pub(super) fn tensor(&self, t: TensorId) -> (Tensor, u64) {
        let tensor = self.layout.get(t);
        (tensor, self.driver.address(&self.arena) + tensor.at as u64)
    }

    fn at(&self, t: TensorId) -> u64 {
        self.tensor(t).1
    }

    fn scratch(&self, part: usize) -> u64 {
        self.driver.address(&self.scratch) + (part * self.part) as u64
    }

    /// Addresses of values and gradients.
    pub(super) fn stores(&self) -> [u64; 3] {
        [&self.values, &self.grads, &self.momentum].map(|buf| self.driver.address(buf))
    }

    fn input(&self, x: Input) -> Operand {
        let a = self.at(x.t);
        let relu = u32::from(x.relu);
        match x.norm {
            None => Operand { a, relu, kind: Operand::PLAIN, ..Operand::default() },
            Some(norm) => {
                Operand { a, relu, kind: Operand::AFFINE, coef: self.norms.get(norm).affine(), ..Operand::default() }
            }
        }
    }

    fn grad(&self, g: Grad) -> Operand {
        let a = self.at(g.t);
        match g.norm {
            None => Operand { a, kind: Operand::PLAIN, ..Operand::default() },
            Some(through) => {
                let coef = self.norms.get(through.norm).through();
                Operand { a, b: self.at(through.x), coef, kind: Operand::THROUGH, relu: 0 }
            }
        }
    }

    fn finish(&self, dx: GradDst) -> Finish {
        let (has_mask, mask) = match dx.finish.mask {
            Mask::All => (0, Operand::default()),
            Mask::Positive(x) => (1, self.input(x)),
        };
        let mut finish = Finish {
            dx: self.at(dx.t),
            mask,
            reduce: [Reduce::default(); 2],
            accumulate: u32::from(dx.write == Write::Accumulate),
            has_mask,
        };
        for (part, normed) in dx.finish.reduce.iter().enumerate() {
            if let Some(n) = normed {
                let mean = self.norms.get(n.norm).mean();
                finish.reduce[part] = Reduce { x: self.at(n.x), mean, partials: self.scratch(part) };
            }
        }
        finish
    }

    /// Merges the sums that a finish of `blocks` row blocks has left.
    fn merge_sums(&self, dx: GradDst, blocks: u64, n: usize) -> Result<()> {
        for (part, normed) in dx.finish.reduce.iter().enumerate() {
            let Some(normed) = normed else { continue };
            let norm = self.norms.get(normed.norm);
            let args = norm::NormSums {
                partials: self.scratch(part),
                blocks,
                rows: self.layout.get(dx.t).rows(n),
                gamma: norm.gamma,
                dgamma: norm.dgamma,
                dbeta: norm.dbeta,
                state: norm.state,
                c: norm.spec.c,
                cp: norm.cp,
            };
            // SAFETY: addresses of this backend's own buffers, of the sizes that the kernel expects.
            unsafe { norm::norm_sums(&*self.driver, &args)? };
        }
        Ok(())
    }

    /// From partial statistics in scratch to coefficients, and to the running statistics unless those wait.
    fn merge_stats(&self, norm: NormId, rows: u64) -> Result<()> {
        let n = self.norms.get(norm);
        let args = norm::NormCoefs {
            partials: self.scratch(0),
            rows,
            gamma: n.gamma,
            beta: n.beta,
            state: n.state,
            eps: n.spec.eps,
            c: n.spec.c,
            cp: n.cp,
        };
        // SAFETY: as in `merge_sums`.
        unsafe {
            norm::norm_coefs(&*self.driver, &args)?;
            if !self.running_later {
                norm::norm_running_update(&*self.driver, n.entry, 1, n.cp, 0)?;
            }
        }
        Ok(())
    }

    pub(super) fn try_norm_stats(&self, norm: NormId, x: TensorId, n: usize) -> Result<()> {
        let (t, at) = self.tensor(x);
        // SAFETY: as in `merge_sums`.
        unsafe { norm::norm_stats(&*self.driver, t.element, at, self.scratch(0), t.rows(n), t.cp)? };
        self.merge_stats(norm, t.rows(n))
    }

    pub(super) fn try_conv_forward(
        &self,
        conv: ConvId,
        x: Input,
        y: TensorId,
        stats: Option<NormId>,
        n: usize,
    ) -> Result<()> {
        let (t, out) = self.tensor(y);
        let stats_at = stats.map_or(0, |_| self.scratch(0));
        let bias = self.spec.convs[conv.0 as usize].bias;
        let bias = bias.map_or(0, |b| self.stores()[0] + 4 * self.spec.params[b.0 as usize].range.start as u64);
        self.convs.forward(&*self.driver, conv, self.input(x), bias, (out, t.element), stats_at, n)?;
        stats.map_or(Ok(()), |norm| self.merge_stats(norm, t.rows(n)))
    }

    pub(super) fn try_conv_backward(
        &self,
        conv: ConvId,
        x: Input,
        dy: Grad,
        dx: Option<GradDst>,
        n: usize,
    ) -> Result<()> {
        let spec = self.spec.convs[conv.0 as usize];
        let [_, grads, _] = self.stores();
        let range = |p: ParamId| grads + 4 * self.spec.params[p.0 as usize].range.start as u64;
        let (x, dy) = (self.input(x), self.grad(dy));
        let made = self.convs.weight_gradient(&*self.driver, conv, x, dy, range(spec.weight), self.scratch(2), n)?;
        if let Some(bias) = spec.bias {
            self.convs.bias_gradient(&*self.driver, conv, dy, range(bias), self.scratch(2), n)?;
        }
        dx.map_or(Ok(()), |dx| self.data_gradient(conv, made, dx, n))
    }

    fn data_gradient(&self, conv: ConvId, dy: Operand, dx: GradDst, n: usize) -> Result<()> {
        let blocks = self.convs.data_gradient(&*self.driver, conv, dy, self.finish(dx), n)?;
        self.merge_sums(dx, blocks, n)
    }

    /// Starts the data gradient of a convolution by itself, without the weight's, which [`Backend::conv_backward`] starts
    /// with it.
    ///
    /// [`Backend::conv_backward`]: crate::backend::Backend::conv_backward
    ///
    /// # Errors
    /// A launch that fails.
    pub fn start_data_gradient(&self, conv: ConvId, dy: Grad, dx: GradDst, n: usize) -> Result<()> {
        self.data_gradient(conv, self.grad(dy), dx, n)
    }

    pub(super) fn try_join(&self, a: Input, b: Option<Input>, relu: bool, y: TensorId, n: usize) -> Result<()> {
        let (t, at) = self.tensor(y);
        let b = b.map_or(Operand::default(), |b| self.input(b));
        let (rows, relu) = (t.rows(n), u32::from(relu));
        let args = join::Join { a: self.input(a), b, y: at, rows, cp: t.cp, relu };
        // SAFETY: as in `merge_sums`.
        unsafe { join::join_forward(&*self.driver, t.element, &args) }
    }

    pub(super) fn try_copy(&self, dy: Grad, dx: GradDst, n: usize) -> Result<()> {
        let (t, _) = self.tensor(dx.t);
        let rows = t.rows(n);
        // SAFETY: as in `merge_sums`.
        unsafe { copy::copy_backward(&*self.driver, t.element, self.grad(dy), self.finish(dx), rows, t.cp)? };
        self.merge_sums(dx, rows.div_ceil(BLOCK_ROWS), n)
    }

    pub(super) fn try_store(&mut self, store: Store, data: &[f32]) -> Result<()> {
        let (buf, len) = match store {
            Store::Values => (&mut self.values, self.spec.stored()),
            Store::Grads => (&mut self.grads, self.spec.stored()),
            Store::Momentum => (&mut self.momentum, self.spec.stored()),
            Store::Running => (&mut self.running, self.spec.running()),
        };
        assert_eq!(data.len(), len, "{store:?} store");
        self.driver.upload(buf, bytemuck::cast_slice(data))?;
        if store == Store::Values {
            let values = self.stores()[0];
            self.convs.copy_values(&*self.driver, values)?;
        }
        Ok(())
    }

    pub(super) fn try_sgd(&mut self, step: SgdStep) -> Result<()> {
        let factors = StepState {
            lr: step.lr as f32,
            momentum: step.momentum as f32,
            weight_decay: step.weight_decay as f32,
            nesterov: u32::from(step.nesterov),
            ..StepState::default()
        };
        self.driver.upload_at(&mut self.state, 0, &bytemuck::bytes_of(&factors)[..16])?;
        self.update()
    }

    /// Starts the SGD step that the state on the device says.
    ///
    /// # Errors
    /// A launch that fails.
    pub fn update(&self) -> Result<()> {
        let [values, grads, momentum] = self.stores();
        self.convs.sgd(&*self.driver, values, grads, momentum, self.driver.address(&self.state))
    }

    pub(super) fn try_pool_forward(&self, x: Input, y: TensorId, n: usize) -> Result<()> {
        let (t, pixels) = (self.layout.get(x.t), self.layout.get(x.t).rows(1) as u32);
        // SAFETY: as in `merge_sums`.
        unsafe { pool::pool_forward(&*self.driver, t.element, self.input(x), self.at(y), n as u64, pixels, t.cp) }
    }

    pub(super) fn try_pool_backward(&self, dy: Grad, dx: GradDst, n: usize) -> Result<()> {
        let t = self.layout.get(dx.t);
        let (pixels, finish) = (t.rows(1) as u32, self.finish(dx));
        // SAFETY: as in `merge_sums`.
        unsafe { pool::pool_backward(&*self.driver, t.element, self.grad(dy), finish, n as u64, pixels, t.cp)? };
        self.merge_sums(dx, t.rows(n).div_ceil(BLOCK_ROWS), n)
    }

    fn max_pool(&self, pool: PoolId, x: TensorId, n: usize) -> MaxPool {
        let (t, p) = (self.layout.get(x), self.spec.pools[pool.0 as usize]);
        let (h, w) = (t.plane.h, t.plane.w);
        MaxPool { n: n as u32, h, w, size: p.size, stride: p.stride, pad: p.pad, cp: t.cp }
    }

    pub(super) fn try_max_pool_forward(&self, pool: PoolId, x: Input, y: TensorId, n: usize) -> Result<()> {
        let (element, pool) = (self.layout.get(y).element, self.max_pool(pool, x.t, n));
        // SAFETY: as in `merge_sums`.
        unsafe { maxpool::max_pool_forward(&*self.driver, element, self.input(x), self.at(y), &pool) }
    }

    pub(super) fn try_max_pool_backward(&self, pool: PoolId, x: Input, dy: Grad, dx: GradDst, n: usize) -> Result<()> {
        let (element, pool) = (self.layout.get(dx.t).element, self.max_pool(pool, x.t, n));
        let (x, dy, finish) = (self.input(x), self.grad(dy), self.finish(dx));
        // SAFETY: as in `merge_sums`.
        unsafe { maxpool::max_pool_backward(&*self.driver, element, x, dy, finish, &pool)? };
        self.merge_sums(dx, pool.blocks(), n)
    }

    pub(super) fn try_norm_running(&self, norm: NormId) -> Result<()> {
        let n = self.norms.get(norm);
        // SAFETY: as in `merge_sums`.
        unsafe { norm::norm_running(&*self.driver, n.entry, 1, n.cp) }
    }

    /// With labels from the host; the loss is waited for.
    pub(super) fn try_cross_entropy(
        &mut self,
        logits: TensorId,
        labels: &[u32],
        smoothing: f64,
        dlogits: Option<TensorId>,
        n: usize,
    ) -> Result<BatchLoss> {
        assert_eq!(labels.len(), n, "one label an image");
        self.driver.upload(&mut self.labels, bytemuck::cast_slice(labels))?;
        let out = self.driver.address(&self.batch_loss);
        let args = self.loss_args(logits, smoothing, dlogits, n);
        // SAFETY: as in `merge_sums`.
        unsafe { loss::cross_entropy(&*self.driver, self.precision.element(), &loss::CrossEntropy { out, ..args })? };
        let mut got = loss::LossOut::default();
        self.driver.download(&self.batch_loss, bytemuck::bytes_of_mut(&mut got))?;
        Ok(BatchLoss { loss_sum: got.loss_sum, correct: got.correct })
    }

    /// Arguments of the loss but for where its sum goes.
    pub(super) fn loss_args(
        &self,
        logits: TensorId,
        smoothing: f64,
        dlogits: Option<TensorId>,
        n: usize,
    ) -> loss::CrossEntropy {
        let (t, at) = self.tensor(logits);
        assert_eq!(t.element, Element::F32, "logits are kept in f32: TensorSpec::exact");
        loss::CrossEntropy {
            logits: at,
            labels: self.driver.address(&self.labels),
            dlogits: dlogits.map_or(0, |d| self.at(d)),
            rows: self.driver.address(&self.image_loss),
            smoothing,
            n: n as u32,
            classes: t.plane.c,
            ..loss::CrossEntropy::default()
        }
    }

    pub(super) fn try_write(&mut self, t: TensorId, n: usize, nchw: &[f32]) -> Result<()> {
        let t = self.layout.get(t);
        assert_eq!(nchw.len(), n * t.plane.len(), "numbers for {n} images");
        self.driver.upload_at(&mut self.arena, t.at, &to_device(t, n, nchw))
    }

    pub(super) fn try_read(&self, t: TensorId, n: usize) -> Result<Vec<f32>> {
        let t = self.layout.get(t);
        let mut bytes = vec![0; t.bytes(n)];
        self.driver.download_at(&self.arena, t.at, &mut bytes)?;
        Ok(to_host(t, n, &bytes))
    }

    pub(super) fn try_read_store(&self, store: Store) -> Result<Vec<f32>> {
        let (buf, len) = match store {
            Store::Values => (&self.values, self.spec.stored()),
            Store::Grads => (&self.grads, self.spec.stored()),
            Store::Momentum => (&self.momentum, self.spec.stored()),
            Store::Running => (&self.running, self.spec.running()),
        };
        let mut data = vec![0f32; len];
        self.driver.download(buf, bytemuck::cast_slice_mut(&mut data))?;
        Ok(data)
    }

    /// Device memory, by kind.
    pub(super) fn held(&self) -> Bytes {
        let stored = 4 * self.spec.stored() as u64;
        let small = self.labels_bytes() + size_of::<StepState>();
        Bytes {
            values: stored,
            indices: self.convs.index_bytes as u64,
            gradients: stored,
            momentum: stored,
            operand_copies: self.convs.copy_bytes as u64,
            activations: (self.layout.bytes
                + 3 * self.part
                + self.convs.vendor().0
                + self.norms.bytes
                + 4 * self.spec.running()
                + small) as u64,
        }
    }

    fn labels_bytes(&self) -> usize {
        (4 + size_of::<loss::RowLoss>()) * self.spec.batch + size_of::<loss::LossOut>()
    }
}
