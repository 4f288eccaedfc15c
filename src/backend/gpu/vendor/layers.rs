//! A network's layers that go through a vendor's library: what comes before and after each product, and the memory for it.

use super::super::driver::Driver;
use super::super::ops::conv::{Conv, ConvPlan};
use super::super::ops::copy;
use super::super::ops::gather::{self, Gather};
use super::super::ops::join::{self, Join};
use super::super::ops::norm;
use super::super::ops::operand::{BLOCK_ROWS, Element, Finish, Operand, Precision, padded};
use super::{Pass, Prepared, Product};
use crate::backend::Spec;
use crate::error::{Error, Result};

/// Parts of the memory begin at multiples of this many bytes, which is what libraries like best.
const ALIGN: usize = 256;

/// The products of one layer: forward, data gradient, weight gradient.
type Layer = [Option<Box<dyn Prepared>>; 3];

/// Parts of the memory: x written out, dy written out, a result, a library's workspace.
#[derive(Clone, Copy)]
enum Part {
    X,
    Dy,
    Out,
    Workspace,
}

/// All layers.
pub(in super::super) struct Layers<D: Driver> {
    layers: Vec<Layer>,
    images: u32,
    memory: D::Buf,
    /// First byte of each [`Part`].
    at: [usize; 4],
    /// Libraries in use, for people.
    pub name: String,
    /// Bytes of device memory.
    pub bytes: usize,
}

impl<D: Driver> Layers<D> {
    /// `None` if no plan asks for a vendor.
    ///
    /// # Errors
    /// One line that names the layer: no vendor, no library, no such product; or no memory.
    pub fn new(driver: &D, spec: &Spec, precision: Precision, plans: &[ConvPlan]) -> Result<Option<Self>> {
        let images = spec.batch as u32;
        let (mut layers, mut sizes) = (Vec::with_capacity(plans.len()), [0usize; 4]);
        for (i, (conv, plan)) in spec.convs.iter().zip(plans).enumerate() {
            let mut layer: Layer = [None, None, None];
            for pass in Pass::ALL.into_iter().filter(|&p| plan.by_vendor(p)) {
                let fault = |why: String| {
                    Error::Failed(format!("the plan sends the {pass} of layer {i} to a vendor's library: {why}"))
                };
                let vendor = driver
                    .vendor()
                    .ok_or_else(|| fault(format!("{} has none; take another plan", driver.describe())))?;
                let product = Product { pass, geom: conv.geom, images, precision };
                let ready = vendor.prepare(&product).map_err(|e| fault(e.to_string()))?;
                let [x, y, w] = product.sizes().map(|n| n as usize);
                let element = precision.element().bytes();
                let room = match pass {
                    Pass::Forward => [x * element, 0, 0],
                    Pass::Data => [0, y * element, x * element],
                    Pass::Weight => [x * element, y * element, w * ready.output().bytes()],
                };
                let room = room.into_iter().chain([ready.workspace_bytes()]);
                sizes.iter_mut().zip(room).for_each(|(size, room)| *size = room.next_multiple_of(ALIGN).max(*size));
                layer[pass as usize] = Some(ready);
            }
            layers.push(layer);
        }
        if layers.iter().flatten().all(Option::is_none) {
            return Ok(None);
        }
        let (mut at, mut bytes) = ([0; 4], 0);
        for (at, size) in at.iter_mut().zip(sizes) {
            (*at, bytes) = (bytes, bytes + size);
        }
        let name = driver.vendor().map_or(String::new(), |v| v.describe());
        Ok(Some(Layers { layers, images, memory: driver.alloc(bytes)?, at, name, bytes }))
    }

    /// Whether it makes that pass of that layer.
    pub fn makes(&self, layer: usize, pass: Pass) -> bool {
        self.layers[layer][pass as usize].is_some()
    }

    fn part(&self, driver: &D, part: Part) -> u64 {
        driver.address(&self.memory) + self.at[part as usize] as u64
    }

    /// # Safety
    /// As [`Prepared::run`].
    unsafe fn run(&self, driver: &D, layer: usize, pass: Pass, [a, b, out]: [u64; 3]) -> Result<()> {
        let product = self.layers[layer][pass as usize].as_ref();
        let product = product.ok_or_else(|| Error::Failed(format!("no {pass} of layer {layer} was made ready")))?;
        // SAFETY: the caller's promise; the workspace is the largest that one of the products wants.
        unsafe { product.run(a, b, out, self.part(driver, Part::Workspace)) }
    }

    /// The operand as a plain tensor of `rows`: itself, or written out to `part`. `total`: rows that the product reads; with
    /// `zeros` those behind `rows` hold zero.
    ///
    /// # Safety
    /// The operand's addresses are live; `part` has room for `total` rows.
    #[allow(clippy::too_many_arguments)] // an operand's parts
    unsafe fn plain(
        &self,
        driver: &D,
        element: Element,
        operand: Operand,
        (rows, total): (u64, u64),
        cp: u32,
        part: Part,
        zeros: bool,
    ) -> Result<u64> {
        let rest = if zeros { total - rows } else { 0 };
        if operand.kind == Operand::PLAIN && operand.relu == 0 && rest == 0 {
            return Ok(operand.a);
        }
        let to = self.part(driver, part);
        let row = u64::from(cp) * element.bytes() as u64; // a multiple of 16
        // SAFETY: the caller's promise.
        unsafe {
            join::join_forward(driver, element, false, &Join { a: operand, y: to, rows, cp, ..Join::default() })?;
            gather::zero_fill(driver, to + rows * row, rest * row / 16)?;
        }
        Ok(to)
    }

    /// `y = conv(x, w) + bias`, and statistics as [`conv::forward`](super::super::ops::conv::forward) leaves them.
    ///
    /// # Safety
    /// As [`conv::forward`](super::super::ops::conv::forward); `w` has padded(K) rows, and what `x` reads, and `y`, room for
    /// the whole batch.
    #[allow(clippy::too_many_arguments)] // the operation's operands
    pub unsafe fn forward(
        &self,
        driver: &D,
        layer: usize,
        conv: &Conv,
        x: Operand,
        [w, bias, y, statistics]: [u64; 4],
        n: usize,
    ) -> Result<()> {
        let (g, element) = (&conv.geom, conv.precision.element());
        let (ck, rows) = (padded(g.k), rows(n as u32, g.p(), g.q()));
        // SAFETY: the caller's promise. Images behind `n` give junk behind the images of y.
        unsafe {
            let counts = self.rows(g.h, g.w, n);
            let x = self.plain(driver, element, x, counts, padded(g.c), Part::X, false)?;
            self.run(driver, layer, Pass::Forward, [x, w, y])?;
            if bias != 0 {
                gather::conv_add_bias(driver, element, y, bias, rows, [g.k, ck])?;
            }
            if statistics != 0 {
                norm::norm_stats(driver, element, y, statistics, rows, ck)?;
            }
        }
        Ok(())
    }

    /// The gradient of the input, finished; returns the row blocks that left partial sums.
    ///
    /// # Safety
    /// As [`conv::data_gradient`](super::super::ops::conv::data_gradient) but that it takes `w`, of padded(K) rows; what `dy`
    /// reads has room for the whole batch.
    #[allow(clippy::too_many_arguments)] // the operation's operands
    pub unsafe fn data_gradient(
        &self,
        driver: &D,
        layer: usize,
        conv: &Conv,
        dy: Operand,
        w: u64,
        finish: Finish,
        n: usize,
    ) -> Result<u64> {
        let (g, element) = (&conv.geom, conv.precision.element());
        let (counts, rows) = (self.rows(g.p(), g.q(), n), rows(n as u32, g.h, g.w));
        // SAFETY: the caller's promise; the copy reads what the product has just made.
        unsafe {
            let dy = self.plain(driver, element, dy, counts, padded(g.k), Part::Dy, false)?;
            let out = self.part(driver, Part::Out);
            self.run(driver, layer, Pass::Data, [dy, w, out])?;
            let made = Operand { a: out, ..Operand::default() };
            copy::copy_backward(driver, element, made, finish, rows, padded(g.c))?;
        }
        Ok(rows.div_ceil(BLOCK_ROWS))
    }

    /// The gradients of the non-zeros. `gather`: where they are to go, and the map; its `dense` and `n` are set here. Returns
    /// `dy` as the data gradient may read it: as it is, or as it was written out, rounded as any kernel would.
    ///
    /// # Safety
    /// As [`conv::weight_gradient`](super::super::ops::conv::weight_gradient); what `x` and `dy` read has room for the whole
    /// batch.
    #[allow(clippy::too_many_arguments)] // the operation's operands
    pub unsafe fn weight_gradient(
        &self,
        driver: &D,
        layer: usize,
        conv: &Conv,
        x: Operand,
        dy: Operand,
        gather: Gather,
        n: usize,
    ) -> Result<Operand> {
        let Some(product) = self.layers[layer][Pass::Weight as usize].as_ref().filter(|_| conv.stored > 0) else {
            return Ok(dy);
        };
        let (g, element) = (&conv.geom, conv.precision.element());
        // SAFETY: the caller's promise. Images behind `n` add zeros.
        unsafe {
            let (inputs, outputs) = (self.rows(g.h, g.w, n), self.rows(g.p(), g.q(), n));
            let x = self.plain(driver, element, x, inputs, padded(g.c), Part::X, true)?;
            let dy = self.plain(driver, element, dy, outputs, padded(g.k), Part::Dy, true)?;
            let dense = self.part(driver, Part::Out);
            self.run(driver, layer, Pass::Weight, [x, dy, dense])?;
            gather::conv_gather_grads(driver, product.output(), &Gather { dense, n: conv.stored, ..gather })?;
            Ok(Operand { a: dy, ..Operand::default() })
        }
    }

    /// Rows of `n` images of that size, and of a whole batch.
    fn rows(&self, h: u32, w: u32, n: usize) -> (u64, u64) {
        (rows(n as u32, h, w), rows(self.images, h, w))
    }
}

fn rows(images: u32, h: u32, w: u32) -> u64 {
    u64::from(images) * u64::from(h) * u64::from(w)
}
