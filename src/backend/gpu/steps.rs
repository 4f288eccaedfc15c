//! Steps that need nothing from the host: data, order, rates, losses and all that steers a step lie on the device, so that
//! many steps can be captured in a graph and replayed.

use super::backend::GpuBackend;
use super::driver::Driver;
use super::ops::augment::{self, Augment};
use super::ops::loss::{self, LossOut};
use super::ops::norm;
use super::ops::operand::padded;
use super::ops::sgd;
use super::ops::state::StepState;
use super::ops::step;
use super::precision::LossScale;
use crate::backend::{BatchLoss, TensorId};
use crate::error::Result;
use std::mem::offset_of;
use std::ops::Range;

/// Images with labels in device memory, as bytes in C,H,W order.
pub struct DeviceImages<D: Driver> {
    pixels: D::Buf,
    labels: D::Buf,
    count: usize,
    base: usize,
}

impl<D: Driver> DeviceImages<D> {
    /// `pixels`: `labels.len()` images. `base`: position of the first in its data set, which its random crops follow.
    ///
    /// # Errors
    /// No memory.
    pub fn new(driver: &D, pixels: &[u8], labels: &[u32], base: usize) -> Result<Self> {
        let (mut p, mut l) = (driver.alloc(pixels.len())?, driver.alloc(4 * labels.len())?);
        driver.upload(&mut p, pixels)?;
        driver.upload(&mut l, bytemuck::cast_slice(labels))?;
        Ok(DeviceImages { pixels: p, labels: l, count: labels.len(), base })
    }

    /// Images.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// Random crop and flip of training images.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Crops {
    /// Pixels around the image that a crop may show; 0: no crop.
    pub pad: u32,
    /// Whether these mirror the image; else they are black.
    pub reflect: bool,
    /// Whether every other image is flipped.
    pub flip: bool,
}

/// What an epoch, or an evaluation, reads and writes beside the network.
pub struct Feed<D: Driver> {
    order: D::Buf,
    rates: D::Buf,
    steps: usize,
    stream: D::Buf,
    tables: D::Buf,
    losses: D::Buf,
    /// Batch of an evaluation; training has its own in the state.
    batch: D::Buf,
    batch_size: usize,
}

impl<D: Driver> Feed<D> {
    /// For epochs of up to `images` images in batches of `batch_size`; `tables`: what each of 256 pixel values becomes, a
    /// channel.
    ///
    /// # Errors
    /// No memory.
    pub fn new(driver: &D, images: usize, batch_size: usize, tables: &[[f32; 256]]) -> Result<Self> {
        let batches = images.div_ceil(batch_size);
        let mut table = driver.alloc(size_of_val(tables))?;
        driver.upload(&mut table, bytemuck::cast_slice(tables))?;
        Ok(Feed {
            order: driver.alloc(4 * images)?,
            rates: driver.alloc(4 * batches)?,
            steps: 0,
            stream: driver.alloc(16)?,
            tables: table,
            losses: driver.alloc(size_of::<LossOut>() * batches)?,
            batch: driver.alloc(8)?,
            batch_size,
        })
    }

    /// Losses of the batches in `range`. Waits for all launches.
    ///
    /// # Errors
    /// What went wrong in them.
    pub fn losses(&self, driver: &D, range: Range<usize>) -> Result<Vec<BatchLoss>> {
        let mut got = vec![LossOut::default(); range.len()];
        let at = range.start * size_of::<LossOut>();
        driver.download_at(&self.losses, at, bytemuck::cast_slice_mut(&mut got))?;
        Ok(got.into_iter().map(|l| BatchLoss { loss_sum: l.loss_sum, correct: l.correct }).collect())
    }

    /// Enters the order of an epoch, the random stream of its crops (key, upper half of the counter), and the learning rate of
    /// each of its steps.
    ///
    /// # Errors
    /// A device that fails.
    pub fn begin_epoch(&mut self, driver: &D, order: &[u32], stream: [u32; 4], rates: &[f32]) -> Result<()> {
        driver.upload(&mut self.order, bytemuck::cast_slice(order))?;
        driver.upload(&mut self.stream, bytemuck::cast_slice(&stream))?;
        self.steps = rates.len();
        driver.upload(&mut self.rates, bytemuck::cast_slice(rates))
    }
}

impl<D: Driver> GpuBackend<D> {
    /// What steers the next step; [`StepState::grads_scale`], which belongs to the last one, stays.
    ///
    /// # Errors
    /// A device that fails.
    pub fn set_state(&mut self, state: &StepState) -> Result<()> {
        let driver = self.driver.clone();
        driver.upload_at(&mut self.state, 0, &bytemuck::bytes_of(state)[..offset_of!(StepState, grads_scale)])
    }

    /// What the last step left. Waits for all launches.
    ///
    /// # Errors
    /// What went wrong in them.
    pub fn state(&self) -> Result<StepState> {
        let mut state = StepState::default();
        self.driver.download(&self.state, bytemuck::bytes_of_mut(&mut state))?;
        Ok(state)
    }

    fn state_at(&self, offset: usize) -> u64 {
        self.driver.address(&self.state) + offset as u64
    }

    /// Starts what comes before the forward pass of a training step on `n` images, up to the input `x`.
    ///
    /// # Errors
    /// A launch that fails.
    pub fn start_step(
        &mut self,
        feed: &Feed<D>,
        images: &DeviceImages<D>,
        crops: Crops,
        x: TensorId,
        n: usize,
    ) -> Result<()> {
        self.running_later = true;
        let d = &*self.driver;
        let batch = self.state_at(offset_of!(StepState, batch));
        let (order, stream) = (d.address(&feed.order), d.address(&feed.stream));
        // SAFETY: addresses of live buffers, of the sizes that their owners were made for.
        unsafe { step::step_begin(d, self.state_at(0), d.address(&feed.rates), feed.steps as u64)? };
        self.gather(feed, images, Augment { order, batch, stream, ..self.crop(crops) }, x, n)
    }

    fn crop(&self, crops: Crops) -> Augment {
        let Crops { pad, reflect, flip } = crops;
        Augment { pad, reflect: u32::from(reflect), flip: u32::from(flip), ..Augment::default() }
    }

    fn gather(&self, feed: &Feed<D>, images: &DeviceImages<D>, args: Augment, x: TensorId, n: usize) -> Result<()> {
        let d = &*self.driver;
        let (t, at) = self.tensor(x);
        let args = Augment {
            images: d.address(&images.pixels),
            all_labels: d.address(&images.labels),
            tables: d.address(&feed.tables),
            x: at,
            labels: d.address(&self.labels),
            count: images.count as u64,
            base: images.base as u64,
            n: n as u32,
            batch_size: feed.batch_size as u32,
            c: t.plane.c,
            cp: padded(t.plane.c),
            h: t.plane.h,
            w: t.plane.w,
            hwc: 0,
            ..args
        };
        // SAFETY: as in `start_step`.
        unsafe { augment::augment(d, t.element, &args) }
    }

    /// Starts the loss of a training step, with the gradient of the logits.
    ///
    /// # Errors
    /// A launch that fails.
    pub fn step_loss(
        &self,
        feed: &Feed<D>,
        logits: TensorId,
        dlogits: TensorId,
        smoothing: f64,
        n: usize,
    ) -> Result<()> {
        let args = loss::CrossEntropy {
            out: self.driver.address(&feed.losses),
            index: self.state_at(offset_of!(StepState, batch)),
            state: self.state_at(0),
            ..self.loss_args(logits, smoothing, Some(dlogits), n)
        };
        // SAFETY: as in `start_step`.
        unsafe { loss::cross_entropy(&*self.driver, self.precision.element(), &args) }
    }

    /// Starts what comes after the backward pass: update, running statistics, loss scale. They write nothing once a loss was
    /// not finite. Where gradients may overflow ([`LossScale::overflows`]), one that did leaves the update out.
    ///
    /// # Errors
    /// A launch that fails.
    pub fn end_step(&mut self, scale: LossScale) -> Result<()> {
        let d = &*self.driver;
        let (state, [_, grads, _]) = (self.state_at(0), self.stores());
        let growth = if scale == LossScale::Dynamic { LossScale::GROWTH_INTERVAL } else { 0 };
        let checked = scale.overflows(self.precision);
        // SAFETY: as in `start_step`.
        unsafe {
            if checked {
                sgd::grads_check(d, grads, self.spec.stored() as u64, state)?;
            }
            self.update()?;
            norm::norm_running_update(d, self.norms.table(d), self.norms.len() as u32, self.norms.widest(), state)?;
            step::step_end(d, state, growth)?;
        }
        self.running_later = false;
        Ok(())
    }

    /// Before the first batch of an evaluation: batches are counted from `batch`, norms use their running statistics.
    ///
    /// # Errors
    /// A device that fails.
    pub fn begin_evaluation(&self, feed: &mut Feed<D>, batch: u64) -> Result<()> {
        let d = &*self.driver;
        d.upload(&mut feed.batch, &batch.to_le_bytes())?;
        // SAFETY: as in `start_step`.
        unsafe { norm::norm_running(d, self.norms.table(d), self.norms.len() as u32, self.norms.widest()) }
    }

    /// Starts what comes before the forward pass of an evaluation on `n` images, in their own order.
    ///
    /// # Errors
    /// A launch that fails.
    pub fn start_evaluation(&self, feed: &Feed<D>, images: &DeviceImages<D>, x: TensorId, n: usize) -> Result<()> {
        let batch = self.driver.address(&feed.batch);
        self.gather(feed, images, Augment { batch, ..Augment::default() }, x, n)
    }

    /// Starts the loss of an evaluation, and goes on to the next batch.
    ///
    /// # Errors
    /// A launch that fails.
    pub fn end_evaluation(&self, feed: &Feed<D>, logits: TensorId, n: usize) -> Result<()> {
        let d = &*self.driver;
        let (index, out) = (d.address(&feed.batch), d.address(&feed.losses));
        let args = loss::CrossEntropy { out, index, ..self.loss_args(logits, 0.0, None, n) };
        // SAFETY: as in `start_step`.
        unsafe {
            loss::cross_entropy(d, self.precision.element(), &args)?;
            step::step_next_batch(d, index)
        }
    }
}
