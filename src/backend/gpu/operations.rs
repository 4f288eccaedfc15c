//! The operations of a step, each a few launches: what [`GpuBackend`] answers to [`Backend`], with errors.
//!
//! [`Backend`]: crate::backend::Backend

use super::backend::GpuBackend;
use super::driver::Driver;
use super::ops::maxpool::{self, MaxPool};
use super::ops::operand::{BLOCK_ROWS, Element, Operand};
use super::ops::state::StepState;
use super::ops::{copy, join, loss, norm, pool};
use crate::backend::{BatchLoss, ConvId, Grad, GradDst, Input, NormId, ParamId, PoolId, SgdStep, TensorId};
use crate::error::Result;
use std::mem::offset_of;

impl<D: Driver> GpuBackend<D> {
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
        let ((t, at), element) = (self.tensor(y), self.precision.element());
        let b = b.map_or(Operand::default(), |b| self.input(b));
        let (rows, relu) = (t.rows(n), u32::from(relu));
        let args = join::Join { a: self.input(a), b, y: at, rows, cp: t.cp, relu };
        // SAFETY: as in `merge_sums`.
        unsafe { join::join_forward(&*self.driver, element, t.element == Element::F32, &args) }
    }

    pub(super) fn try_copy(&self, dy: Grad, dx: GradDst, n: usize) -> Result<()> {
        let (t, _) = self.tensor(dx.t);
        let rows = t.rows(n);
        // SAFETY: as in `merge_sums`.
        unsafe { copy::copy_backward(&*self.driver, t.element, self.grad(dy), self.finish(dx), rows, t.cp)? };
        self.merge_sums(dx, rows.div_ceil(BLOCK_ROWS), n)
    }

    pub(super) fn try_sgd(&mut self, step: SgdStep) -> Result<()> {
        // The factors alone: loss scale and counts stay.
        let factors = StepState::from(step);
        self.driver.upload_at(
            &mut self.state,
            0,
            &bytemuck::bytes_of(&factors)[..offset_of!(StepState, loss_scale)],
        )?;
        self.update()
    }

    /// Starts the SGD step that the state on the device says.
    ///
    /// # Errors
    /// A launch that fails.
    pub fn update(&self) -> Result<()> {
        let [values, grads, momentum] = self.stores();
        let state = self.driver.address(&self.state);
        self.convs.sgd(&*self.driver, values, grads, momentum, self.exempt(), state)
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

    fn max_pool(&self, pool: PoolId, n: usize) -> MaxPool {
        MaxPool::of(&self.spec.pools[pool.0 as usize], n)
    }

    pub(super) fn try_max_pool_forward(&self, pool: PoolId, x: Input, y: TensorId, n: usize) -> Result<()> {
        let (element, pool) = (self.layout.get(y).element, self.max_pool(pool, n));
        // SAFETY: as in `merge_sums`.
        unsafe { maxpool::max_pool_forward(&*self.driver, element, self.input(x), self.at(y), &pool) }
    }

    pub(super) fn try_max_pool_backward(&self, pool: PoolId, x: Input, dy: Grad, dx: GradDst, n: usize) -> Result<()> {
        let (element, pool) = (self.layout.get(dx.t).element, self.max_pool(pool, n));
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

    /// With labels from the host; the loss is waited for, and not scaled.
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
        if dlogits.is_some() {
            let at = offset_of!(StepState, grads_scale);
            self.driver.upload_at(&mut self.state, at, &1f32.to_ne_bytes())?;
        }
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
}
