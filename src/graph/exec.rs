//! The executor: runs a lowered network on a backend.

use super::lower::{Backward, Forward, Program, Wanted, lower_for};
use super::{Graph, NetState, NormState, ParamState};
use crate::backend::{Backend, BatchLoss, NormId, Real, SgdStep, Spec, Store};
use crate::error::Result;
use crate::sparsity::Mask;

/// A network on a device: parameters, activations and the order of operations.
pub struct Net<B: Backend> {
    pub(super) program: Program,
    pub(super) backend: B,
    /// Names of the parameters, and whether a mask may prune them.
    pub(super) params: Vec<(String, bool)>,
    norm_names: Vec<String>,
    image_len: usize,
    classes: usize,
}

impl<B: Backend> Net<B> {
    /// Lowers `graph` with `masks` for at most `batch` images and allocates it on the backend that `make` builds.
    /// Values start at zero: see [`Net::init`] and [`Net::load`].
    ///
    /// # Errors
    /// Those of [`lower`] and of `make`.
    pub fn new(graph: &Graph, masks: &[Mask], batch: usize, make: impl FnOnce(Spec) -> Result<B>) -> Result<Self> {
        Self::make(graph, masks, batch, make, Wanted::Parameters)
    }

    /// The same network for [`Net::input_gradient`] too: with room for the gradient of the images, which
    /// [`Net::forward_backward`] then takes as well.
    ///
    /// # Errors
    /// Those of [`Net::new`].
    pub fn with_input_gradient(
        graph: &Graph,
        masks: &[Mask],
        batch: usize,
        make: impl FnOnce(Spec) -> Result<B>,
    ) -> Result<Self> {
        Self::make(graph, masks, batch, make, Wanted::ParametersAndImages)
    }

    fn make(
        graph: &Graph,
        masks: &[Mask],
        batch: usize,
        make: impl FnOnce(Spec) -> Result<B>,
        wanted: Wanted,
    ) -> Result<Self> {
        let program = lower_for(graph, masks, batch, wanted)?;
        let backend = make(program.spec.clone())?;
        let (c, h, w) = graph.nodes()[0].chw;
        let classes = program.spec.tensors[program.logits.0 as usize].plane.c as usize;
        Ok(Net {
            program,
            backend,
            params: graph.params().iter().map(|p| (p.name.clone(), p.maskable)).collect(),
            norm_names: graph.norms().iter().map(|n| n.name.clone()).collect(),
            image_len: (c * h * w) as usize,
            classes,
        })
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The device, to replace its stores.
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }

    /// The operations.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Sets initial values from the stream of `seed`, momentum to zero, running statistics to mean 0 and variance 1.
    pub fn init(&mut self, graph: &Graph, seed: u64) {
        let spec = &self.program.spec;
        let kept = spec.params.iter().map(|p| p.kept.as_deref()).enumerate();
        let values: Vec<B::Real> =
            kept.flat_map(|(i, kept)| graph.init_values(i, kept, seed)).map(B::Real::from_f64).collect();
        let mut running = vec![B::Real::from_f64(0.0); spec.running()];
        for n in &spec.norms {
            running[n.running + n.c as usize..][..n.c as usize].fill(B::Real::from_f64(1.0));
        }
        self.backend.write_store(Store::Values, &values);
        self.backend.write_store(Store::Momentum, &vec![B::Real::default(); values.len()]);
        self.backend.write_store(Store::Running, &running);
    }

    /// Whether a training step with `n` images is defined: batch norm needs two values a channel.
    ///
    /// # Errors
    /// Names the batch norm and what to do.
    pub fn check_batch(&self, n: usize) -> Result<()> {
        self.program.check_batch(n, |norm| &self.norm_names[norm])
    }

    /// One training pass without the update: forward with batch statistics, mean loss over the batch, gradients.
    /// `images` holds N,C,H,W for `labels.len()` images.
    ///
    /// # Panics
    /// If lengths do not match, a label is out of range, or [`Net::check_batch`] fails.
    pub fn forward_backward(&mut self, images: &[B::Real], labels: &[u32], smoothing: f64) -> BatchLoss {
        let n = self.feed(images, labels);
        self.check_batch(n).expect("checked by the caller");
        self.forward(n, true);
        let loss = self.backend.cross_entropy(self.program.logits, labels, smoothing, Some(self.program.dlogits), n);
        self.backward(n);
        loss
    }

    /// The operations of the forward pass alone, on the `n` images that the input tensor holds: with batch statistics, or
    /// with the coefficients that the norms have.
    pub fn forward(&mut self, n: usize, batch_statistics: bool) {
        let b = &mut self.backend;
        for op in &self.program.forward {
            match *op {
                Forward::Conv { conv, x, y, stats } => {
                    b.conv_forward(conv, x, y, stats.filter(|_| batch_statistics), n);
                }
                Forward::Stats { norm, x } if batch_statistics => b.norm_stats(norm, x, n),
                Forward::Stats { .. } => {}
                Forward::Join { a, b: other, relu, y } => b.join_forward(a, other, relu, y, n),
                Forward::Pool { x, y } => b.pool_forward(x, y, n),
                Forward::MaxPool { pool, x, y } => b.max_pool_forward(pool, x, y, n),
            }
        }
    }

    /// The operations of the backward pass alone, from the gradient of the logits.
    pub fn backward(&mut self, n: usize) {
        let b = &mut self.backend;
        self.program.backward.iter().for_each(|&op| run_backward(b, op, n));
    }

    /// The update with the gradients of the last [`Net::forward_backward`].
    pub fn sgd(&mut self, step: SgdStep) {
        self.backend.sgd(step);
    }

    /// Forward with the running statistics; plain cross-entropy. Changes no parameter or statistic.
    ///
    /// # Panics
    /// As [`Net::forward_backward`], for lengths and labels.
    pub fn infer(&mut self, images: &[B::Real], labels: &[u32]) -> BatchLoss {
        let n = self.feed(images, labels);
        self.evaluate(n);
        self.backend.cross_entropy(self.program.logits, labels, 0.0, None, n)
    }

    /// Logits of the last pass, N x classes.
    pub fn logits(&self, n: usize) -> Vec<B::Real> {
        self.backend.read_tensor(self.program.logits, n)
    }

    /// The forward pass with the running statistics.
    pub(super) fn evaluate(&mut self, n: usize) {
        for norm in 0..self.program.spec.norms.len() {
            self.backend.norm_running(NormId(norm as u32));
        }
        self.forward(n, false);
    }

    fn feed(&mut self, images: &[B::Real], labels: &[u32]) -> usize {
        assert!(labels.iter().all(|&l| (l as usize) < self.classes), "a label out of range");
        self.feed_images(images, labels.len());
        labels.len()
    }

    pub(super) fn feed_images(&mut self, images: &[B::Real], n: usize) {
        assert!((1..=self.program.spec.batch).contains(&n), "a batch of {n} images");
        assert_eq!(images.len(), n * self.image_len, "image data");
        self.backend.write_tensor(self.program.input, n, images);
    }

    /// Everything that training changes, by name.
    pub fn state(&self) -> NetState {
        let f32s = |s| -> Vec<f32> { self.backend.read_store(s).into_iter().map(|v| v.to_f64() as f32).collect() };
        let (values, momentum, running) = (f32s(Store::Values), f32s(Store::Momentum), f32s(Store::Running));
        let params = self.program.spec.params.iter().zip(&self.params).map(|(p, (name, _))| ParamState {
            name: name.clone(),
            shape: p.shape.clone(),
            kept: p.kept.clone(),
            values: values[p.range.clone()].to_vec(),
            momentum: momentum[p.range.clone()].to_vec(),
        });
        let norms = self.program.spec.norms.iter().zip(&self.norm_names).map(|(n, name)| {
            let (mean, var) = running[n.running..][..2 * n.c as usize].split_at(n.c as usize);
            NormState { name: name.clone(), mean: mean.to_vec(), var: var.to_vec() }
        });
        NetState { params: params.collect(), norms: norms.collect() }
    }

    /// Replaces everything that training changes.
    ///
    /// # Errors
    /// A state of another network or of other masks: the first difference is named.
    pub fn load(&mut self, state: &NetState) -> Result<()> {
        self.state().check_same_layout(state)?;
        let reals = |v: &mut dyn Iterator<Item = &f32>| -> Vec<B::Real> {
            v.map(|&v| B::Real::from_f64(f64::from(v))).collect()
        };
        let values = reals(&mut state.params.iter().flat_map(|p| &p.values));
        let momentum = reals(&mut state.params.iter().flat_map(|p| &p.momentum));
        let running = reals(&mut state.norms.iter().flat_map(|n| n.mean.iter().chain(&n.var)));
        self.backend.write_store(Store::Values, &values);
        self.backend.write_store(Store::Momentum, &momentum);
        self.backend.write_store(Store::Running, &running);
        Ok(())
    }
}

pub(super) fn run_backward<B: Backend>(b: &mut B, op: Backward, n: usize) {
    match op {
        Backward::Conv { conv, x, dy, dx } => b.conv_backward(conv, x, dy, dx, n),
        Backward::ConvData { conv, dy, dx } => b.conv_data_backward(conv, dy, dx, n),
        Backward::Copy { dy, dx } => b.copy_backward(dy, dx, n),
        Backward::Pool { dy, dx } => b.pool_backward(dy, dx, n),
        Backward::MaxPool { pool, x, dy, dx } => b.max_pool_backward(pool, x, dy, dx, n),
    }
}
