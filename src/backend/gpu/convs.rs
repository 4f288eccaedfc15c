//! The convolutions of a network on the device: operand copies of their weights, lists of their masks, and the map by which
//! an update reaches the copies.

use super::driver::Driver;
use super::ops::conv::{self, Conv, ConvPlan, DataGradient, Forward, WeightGradient, data_tiles};
use super::ops::gather::Gather;
use super::ops::operand::{Element, Finish, Operand, Precision, padded};
use super::ops::sgd::{self, Place, SgdStore};
use super::plan::GpuPlan;
use super::vendor::{Pass, layers::Layers};
use crate::backend::{ConvId, ParamSpec, Spec};
use crate::error::{Error, Result};

/// Operand copies begin at multiples of this many numbers.
const ALIGN: usize = 128;

/// One convolution, with its place in the copies.
struct Layer {
    conv: Conv,
    /// First number in both copies.
    at: [usize; 2],
    /// First stored weight.
    first: usize,
}

/// All convolutions.
pub(super) struct Convs<D: Driver> {
    layers: Vec<Layer>,
    plan: GpuPlan,
    element: Element,
    stored: usize,
    /// [K][R*S][padded(C)] of each, and [C][R*S][padded(K)].
    copies: [D::Buf; 2],
    map: D::Buf,
    _lists: D::Buf,
    /// What a vendor's library makes.
    vendor: Option<Layers<D>>,
    scratch: u64,
    pub copy_bytes: usize,
    pub index_bytes: usize,
}

impl<D: Driver> Convs<D> {
    pub fn new(driver: &D, spec: &Spec, precision: Precision, plan: Option<&GpuPlan>) -> Result<Self> {
        let batch = spec.batch as u32;
        if let Some(plan) = plan {
            plan.check_spec(spec).map_err(Error::Failed)?;
        }
        let mut layers = Vec::with_capacity(spec.convs.len());
        let (mut ends, mut words, mut scratch) = ([0usize; 2], Vec::<u32>::new(), 0);
        let mut map = vec![Place { w: Place::NOWHERE, wt: Place::NOWHERE }; spec.stored()];
        for (i, c) in spec.convs.iter().enumerate() {
            let (g, weight) = (c.geom, &spec.params[c.weight.0 as usize]);
            let kept = weight.kept.as_deref();
            let block = weight.block.map(|b| (b.r, b.c));
            let mut conv = match plan {
                Some(plan) => Conv::with_plan(g, precision, plan.layers[i].plan, kept, block)?,
                None => Conv::new(g, precision, batch, kept, block)?,
            };
            conv.check_images(batch)?;
            // The offset for now, the address once there is one.
            words.resize(words.len().next_multiple_of(2), 0);
            conv.lists_at = 4 * words.len() as u64;
            words.append(&mut conv.lists.words);
            scratch = scratch.max(conv.weight_scratch()).max(conv.bias_scratch(batch));
            let taps = (g.r * g.s) as usize;
            // A library takes padding channels for channels.
            let rows = if Pass::ALL.iter().any(|&p| conv.plan.by_vendor(p)) { padded(g.k) } else { g.k };
            let sizes = [(rows, g.c), (g.c, g.k)].map(|(rows, row)| rows as usize * taps * padded(row) as usize);
            map_weight(weight, [g.k, g.c, g.r * g.s], ends, &mut map);
            layers.push(Layer { conv, at: ends, first: weight.range.start });
            for (end, size) in ends.iter_mut().zip(sizes) {
                *end = (*end + size).next_multiple_of(ALIGN);
            }
        }
        if let Some(end) = ends.into_iter().find(|&end| end >= Place::NOWHERE as usize) {
            return Err(Error::Failed(format!("GPU: the network's dense weights are {end} numbers, at most 2^32")));
        }
        let plans: Vec<ConvPlan> = layers.iter().map(|l| l.conv.plan).collect();
        let vendor = Layers::new(driver, spec, precision, &plans)?;
        let element = precision.element();
        let [w, wt] = ends.map(|numbers| -> Result<D::Buf> {
            let mut buf = driver.alloc(numbers * element.bytes())?;
            driver.fill(&mut buf, 0)?; // pruned weights and padding stay zero for good
            Ok(buf)
        });
        let copies = [w?, wt?];
        let mut map_buf = driver.alloc(size_of_val(&*map))?;
        driver.upload(&mut map_buf, bytemuck::cast_slice(&map))?;
        let mut lists = driver.alloc(4 * words.len())?;
        driver.upload(&mut lists, bytemuck::cast_slice(&words))?;
        let first = driver.address(&lists);
        layers.iter_mut().for_each(|l| l.conv.lists_at += first);
        let plan = plan.cloned().unwrap_or_else(|| GpuPlan::of(precision, spec, plans.into_iter(), &driver.describe()));
        Ok(Convs {
            layers,
            plan,
            element,
            stored: spec.stored(),
            copies,
            map: map_buf,
            _lists: lists,
            vendor,
            scratch,
            copy_bytes: (ends[0] + ends[1]) * element.bytes(),
            index_bytes: size_of_val(&*map) + 4 * words.len(),
        })
    }

    pub fn plan(&self) -> &GpuPlan {
        &self.plan
    }

    /// Memory for a vendor's products, and the libraries that make them.
    pub fn vendor(&self) -> (usize, &str) {
        self.vendor.as_ref().map_or((0, ""), |v| (v.bytes, &v.name))
    }

    /// The vendor, if it makes that pass of that layer.
    fn by_vendor(&self, conv: ConvId, pass: Pass) -> Option<&Layers<D>> {
        self.vendor.as_ref().filter(|v| v.makes(conv.0 as usize, pass))
    }

    /// What weight and bias gradients need at most.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch as usize
    }

    /// Partial sums, pairs of f32, that the widest data gradient of `batch` images leaves for one norm.
    pub fn sums_bytes(&self, batch: usize) -> usize {
        let of = |l: &Layer| data_tiles(&l.conv.geom, batch as u32) as usize * padded(l.conv.geom.c) as usize * 8;
        self.layers.iter().map(of).max().unwrap_or(0)
    }

    /// The layer, and where its copies lie.
    fn layer(&self, driver: &D, conv: ConvId) -> (&Conv, [u64; 2]) {
        let layer = &self.layers[conv.0 as usize];
        let at = |i: usize| driver.address(&self.copies[i]) + (layer.at[i] * self.element.bytes()) as u64;
        (&layer.conv, [at(0), at(1)])
    }

    /// `y`: address, and what it is stored as. `bias` and `statistics`: addresses, or 0.
    #[allow(clippy::too_many_arguments)] // the operation's operands
    pub fn forward(
        &self,
        driver: &D,
        conv: ConvId,
        x: Operand,
        bias: u64,
        (y, stored): (u64, Element),
        statistics: u64,
        n: usize,
    ) -> Result<()> {
        let (id, (conv, [w, _])) = (conv, self.layer(driver, conv));
        if let Some(vendor) = self.by_vendor(id, Pass::Forward).filter(|_| stored == self.element) {
            // SAFETY: as below; tensors have room for the batch, the copy has padding rows.
            return unsafe { vendor.forward(driver, id.0 as usize, conv, x, [w, bias, y, statistics], n) };
        }
        let a = Forward { x, w, bias, y, y_f32: stored == Element::F32, statistics };
        // SAFETY: addresses of the backend's own buffers, of the sizes that its spec and this layer's geometry give.
        unsafe { conv::forward(driver, conv, n as u32, &a) }
    }

    /// Returns the row blocks that left partial sums.
    pub fn data_gradient(&self, driver: &D, conv: ConvId, dy: Operand, finish: Finish, n: usize) -> Result<u64> {
        let (id, (conv, [w, wt])) = (conv, self.layer(driver, conv));
        if let Some(vendor) = self.by_vendor(id, Pass::Data) {
            // SAFETY: as in `forward`.
            return unsafe { vendor.data_gradient(driver, id.0 as usize, conv, dy, w, finish, n) };
        }
        // SAFETY: as in `forward`.
        unsafe { conv::data_gradient(driver, conv, n as u32, &DataGradient { dy, wt, finish })? };
        Ok(data_tiles(&conv.geom, n as u32))
    }

    /// Returns `dy` as the data gradient may read it: a vendor's operands are written out, once for both.
    #[allow(clippy::too_many_arguments)] // the operation's operands
    pub fn weight_gradient(
        &self,
        driver: &D,
        conv: ConvId,
        x: Operand,
        dy: Operand,
        grads: u64,
        scratch: u64,
        n: usize,
    ) -> Result<Operand> {
        let (id, (conv, _)) = (conv, self.layer(driver, conv));
        if let Some(vendor) = self.by_vendor(id, Pass::Weight) {
            let layer = &self.layers[id.0 as usize];
            let places = driver.address(&self.map) + (layer.first * size_of::<Place>()) as u64;
            let gather = Gather { places, grads, first: layer.at[0] as u32, ..Gather::default() };
            // SAFETY: as in `forward`.
            return unsafe { vendor.weight_gradient(driver, id.0 as usize, conv, x, dy, gather, n) };
        }
        // SAFETY: as in `forward`.
        unsafe { conv::weight_gradient(driver, conv, n as u32, &WeightGradient { x, dy, grads, scratch })? };
        Ok(dy)
    }

    pub fn bias_gradient(
        &self,
        driver: &D,
        conv: ConvId,
        dy: Operand,
        grads: u64,
        scratch: u64,
        n: usize,
    ) -> Result<()> {
        let (conv, _) = self.layer(driver, conv);
        // SAFETY: as in `forward`.
        unsafe { conv::bias_gradient(driver, conv, n as u32, &dy, grads, scratch) }
    }

    fn store(&self, driver: &D, values: u64) -> SgdStore {
        let [w, wt] = [0, 1].map(|i| driver.address(&self.copies[i]));
        SgdStore { values, map: driver.address(&self.map), w, wt, n: self.stored as u64 }
    }

    /// Copies from replaced values.
    pub fn copy_values(&self, driver: &D, values: u64) -> Result<()> {
        // SAFETY: as in `forward`; the map's places lie in the copies.
        unsafe { sgd::copy_values(driver, self.element, &self.store(driver, values)) }
    }

    /// The update that `state` says, without weight decay where `exempt` has a bit; the copies follow.
    pub fn sgd(&self, driver: &D, values: u64, grads: u64, momentum: u64, exempt: u64, state: u64) -> Result<()> {
        // SAFETY: as in `copy_values`.
        unsafe { sgd::sgd_step(driver, self.element, &self.store(driver, values), grads, momentum, exempt, state) }
    }
}

/// Enters where the weights of a layer of K, C and R*S go in the copies that begin at `at`.
fn map_weight(weight: &ParamSpec, [k, c, taps]: [u32; 3], at: [usize; 2], map: &mut [Place]) {
    let (ck, cc) = (padded(k) as usize, padded(c) as usize);
    for (i, place) in map[weight.range.clone()].iter_mut().enumerate() {
        let flat = weight.kept.as_ref().map_or(i, |kept| kept[i] as usize);
        let taps = taps as usize;
        let (out, input, tap) = (flat / (c as usize * taps), flat / taps % c as usize, flat % taps);
        *place = Place {
            w: (at[0] + (out * taps + tap) * cc + input) as u32,
            wt: (at[1] + (input * taps + tap) * ck + out) as u32,
        };
    }
}
