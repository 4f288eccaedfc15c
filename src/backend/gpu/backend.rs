//! [`GpuBackend`]: every operation is a few launches on one stream of a device driver.

use super::convs::Convs;
use super::driver::Driver;
use super::layout::{Layout, Tensor, to_device, to_host};
use super::norms::Norms;
use super::ops::loss;
use super::ops::maxpool::MaxPool;
use super::ops::operand::{BLOCK_ROWS, Finish, Operand, Precision, Reduce};
use super::ops::state::StepState;
use super::plan::GpuPlan;
use crate::backend::{Bytes, Grad, GradDst, Input, Mask, Spec, Store, TensorId, Write};
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
    /// A bit a stored parameter, set if it has no weight decay; none if all have it.
    exempt: Option<D::Buf>,
    running: D::Buf,
    pub(super) norms: Norms<D>,
    pub(super) convs: Convs<D>,
    scratch: D::Buf,
    /// Bytes of one of the three parts of `scratch`.
    part: usize,
    pub(super) labels: D::Buf,
    pub(super) image_loss: D::Buf,
    pub(super) batch_loss: D::Buf,
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
        for pool in &spec.pools {
            MaxPool::of(pool, spec.batch).check()?;
        }
        let layout = Layout::new(&spec, precision.element())?;
        let arena = driver.alloc(layout.bytes)?;
        let [values, grads, momentum] = [zeroed(stored)?, zeroed(stored)?, zeroed(stored)?];
        let exempt = exempt_bits(&spec).map(|words| upload(&driver, &words)).transpose()?;
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
            bytemuck::bytes_of(&StepState { loss_scale: 1.0, unscale: 1.0, grads_scale: 1.0, ..Default::default() }),
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
            exempt,
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

    pub(super) fn at(&self, t: TensorId) -> u64 {
        self.tensor(t).1
    }

    pub(super) fn scratch(&self, part: usize) -> u64 {
        self.driver.address(&self.scratch) + (part * self.part) as u64
    }

    /// Addresses of values, gradients and momentum.
    pub(super) fn stores(&self) -> [u64; 3] {
        [&self.values, &self.grads, &self.momentum].map(|buf| self.driver.address(buf))
    }

    /// Address of the bits of the parameters without weight decay; 0: there are none.
    pub(super) fn exempt(&self) -> u64 {
        self.exempt.as_ref().map_or(0, |buf| self.driver.address(buf))
    }

    pub(super) fn input(&self, x: Input) -> Operand {
        let a = self.at(x.t);
        let relu = u32::from(x.relu);
        match x.norm {
            None => Operand { a, relu, kind: Operand::PLAIN, ..Operand::default() },
            Some(norm) => {
                Operand { a, relu, kind: Operand::AFFINE, coef: self.norms.get(norm).affine(), ..Operand::default() }
            }
        }
    }

    pub(super) fn grad(&self, g: Grad) -> Operand {
        let a = self.at(g.t);
        match g.norm {
            None => Operand { a, kind: Operand::PLAIN, ..Operand::default() },
            Some(through) => {
                let coef = self.norms.get(through.norm).through();
                Operand { a, b: self.at(through.x), coef, kind: Operand::THROUGH, relu: 0 }
            }
        }
    }

    pub(super) fn finish(&self, dx: GradDst) -> Finish {
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
            indices: (self.convs.index_bytes + self.exempt.as_ref().map_or(0, |buf| self.driver.bytes(buf))) as u64,
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

/// A bit a stored parameter, in words of 32 from the lowest bit on: set if weight decay does not apply. `None`: it does to all.
fn exempt_bits(spec: &Spec) -> Option<Vec<u32>> {
    let mut words = vec![0u32; spec.stored().div_ceil(32)];
    for i in spec.params.iter().filter(|p| !p.decay).flat_map(|p| p.range.clone()) {
        words[i / 32] |= 1 << (i % 32);
    }
    words.iter().any(|&w| w != 0).then_some(words)
}

fn upload<D: Driver>(driver: &D, words: &[u32]) -> Result<D::Buf> {
    let mut buf = driver.alloc(size_of_val(words))?;
    driver.upload(&mut buf, bytemuck::cast_slice(words))?;
    Ok(buf)
}
