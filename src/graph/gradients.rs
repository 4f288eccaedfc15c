//! Gradients that are looked at: of the images, and of each parameter.

use super::Net;
use super::exec::run_backward;
use super::lower::Backward;
use crate::backend::{Backend, Real, Store};

/// The gradient of one parameter tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamGradient<'a> {
    /// Name, such as "segment1.block0.conv1.weight".
    pub name: &'a str,
    /// Whether a mask may prune the tensor.
    pub maskable: bool,
    /// Numbers at the stored positions, the active ones of a mask, ascending; of a dense tensor all.
    pub values: Vec<f64>,
}

impl<B: Backend> Net<B> {
    /// The gradient of the images, as evaluation sees them: forward with the running statistics; `dlogits` makes, from the
    /// logits, their gradient; backward through batch norms that stay as they are. Returns logits, N x classes, and the
    /// gradient, N,C,H,W, of `n` images N,C,H,W. Changes no parameter, gradient, momentum or statistic.
    ///
    /// Images do not influence each other here: what `dlogits` gives an image may be scaled by any positive number, and
    /// its gradient scales with it. In half precision, whose gradients leave its range on the way if they grow beyond 65504
    /// or fall below 6e-8 (f16), that is the caller's to use: numbers of about 1 for every image, whatever its own loss.
    ///
    /// # Panics
    /// If the network was not made by [`Net::with_input_gradient`], or lengths do not match.
    pub fn input_gradient(
        &mut self,
        images: &[B::Real],
        n: usize,
        dlogits: impl FnOnce(&[B::Real]) -> Vec<B::Real>,
    ) -> (Vec<B::Real>, Vec<B::Real>) {
        let dinput = self.program.dinput.expect("a network made by Net::with_input_gradient");
        self.feed_images(images, n);
        self.evaluate(n);
        let logits = self.logits(n);
        self.backend.write_tensor(self.program.dlogits, n, &dlogits(&logits));
        let b = &mut self.backend;
        let ops = self.program.backward.iter().copied().filter_map(Backward::of_images);
        ops.for_each(|op| run_backward(b, op, n));
        (logits, self.backend.read_tensor(dinput, n))
    }

    /// The gradient of each parameter, in the order of [`Graph::params`](super::Graph::params): of the mean loss of the last
    /// [`Net::forward_backward`], or training step on a device, before weight decay and momentum. A loss scale is divided
    /// out; the gradients of a step that overflowed hold infinities or NaN.
    pub fn gradients(&self) -> Vec<ParamGradient<'_>> {
        let (all, scale) = (self.backend.read_store(Store::Grads), self.backend.gradient_scale());
        let params = self.program.spec.params.iter().zip(&self.params);
        params
            .map(|(p, (name, maskable))| {
                let values = all[p.range.clone()].iter().map(|v| v.to_f64() / scale).collect();
                ParamGradient { name, maskable: *maskable, values }
            })
            .collect()
    }
}
