//! One operation on the three backends of a rig, and the comparison of all that it writes.

use super::operand::channel_of;
use super::rig::{Out, Place, Rig, f64s};
use sparse_engine::backend::{Backend, Finish, Grad, GradDst, Input, Mask, ParamId, Real, Store, TensorId, Write};
use sparse_engine::graph::lower::{Backward, Forward};

pub fn run_forward<B: Backend>(b: &mut B, op: Forward, n: usize) {
    match op {
        Forward::Conv { conv, x, y, stats } => b.conv_forward(conv, x, y, stats, n),
        Forward::Stats { norm, x } => b.norm_stats(norm, x, n),
        Forward::Join { a, b: other, relu, y } => b.join_forward(a, other, relu, y, n),
        Forward::Pool { x, y } => b.pool_forward(x, y, n),
        Forward::MaxPool { pool, x, y } => b.max_pool_forward(pool, x, y, n),
    }
}

pub fn run_backward<B: Backend>(b: &mut B, op: Backward, n: usize) {
    match op {
        Backward::Conv { conv, x, dy, dx } => b.conv_backward(conv, x, dy, dx, n),
        Backward::ConvData { conv, dy, dx } => b.conv_data_backward(conv, dy, dx, n),
        Backward::Copy { dy, dx } => b.copy_backward(dy, dx, n),
        Backward::Pool { dy, dx } => b.pool_backward(dy, dx, n),
        Backward::MaxPool { pool, x, dy, dx } => b.max_pool_backward(pool, x, dy, dx, n),
    }
}

/// The same with the gradient destination and the operands changed.
fn bare(op: Backward) -> Backward {
    let plain = |x: Input| Input::plain(x.t);
    let grad = |dy: Grad| Grad::plain(dy.t);
    let dst = |dx: GradDst| GradDst { finish: Finish::default(), ..dx };
    match op {
        Backward::Conv { conv, x, dy, dx } => Backward::Conv { conv, x: plain(x), dy: grad(dy), dx: dx.map(dst) },
        Backward::ConvData { conv, dy, dx } => Backward::ConvData { conv, dy: grad(dy), dx: dst(dx) },
        Backward::Copy { dy, dx } => Backward::Copy { dy: grad(dy), dx: dst(dx) },
        Backward::Pool { dy, dx } => Backward::Pool { dy: grad(dy), dx: dst(dx) },
        Backward::MaxPool { pool, x, dy, dx } => Backward::MaxPool { pool, x: plain(x), dy: grad(dy), dx: dst(dx) },
    }
}

fn parts(op: Backward) -> (Option<Input>, Grad, Option<GradDst>) {
    match op {
        Backward::Conv { x, dy, dx, .. } => (Some(x), dy, dx),
        Backward::MaxPool { x, dy, dx, .. } => (Some(x), dy, Some(dx)),
        Backward::ConvData { dy, dx, .. } => (None, dy, Some(dx)),
        Backward::Copy { dy, dx } | Backward::Pool { dy, dx } => (None, dy, Some(dx)),
    }
}

impl<B: Backend> Rig<B> {
    /// Gives the magnitudes' backend |value| of an operand, and its error as sums of `k` terms will weigh it.
    fn weigh(&mut self, t: TensorId, n: usize, k: usize, (value, error): (Vec<f64>, Vec<f64>)) {
        let scale = 2.0 * (k as f64).sqrt();
        let weight: Vec<f64> = value.iter().zip(error).map(|(v, e)| v.abs() + e / scale).collect();
        self.mag.write_tensor(t, n, &weight);
    }

    /// From here on the reference goes on with what the backend under test has in `t`.
    fn adopt(&mut self, t: TensorId, n: usize) {
        let data = f64s(&self.dev.read_tensor(t, n));
        self.exact.write_tensor(t, n, &data);
    }

    /// A forward operation whose outputs are sums of `k` terms.
    pub fn forward(&mut self, what: &str, op: Forward, n: usize, k: usize) {
        run_forward(&mut self.dev, op, n);
        let mut outs = vec![];
        let y = match op {
            Forward::Conv { conv, x, y, .. } => {
                self.exact.conv_forward(conv, x, y, None, n);
                self.weigh(x.t, n, k, self.value(x, n));
                self.mag.conv_forward(conv, Input::plain(x.t), y, None, n);
                outs.push(self.by_mag(Place::Tensor(y), n, k));
                Some(y)
            }
            Forward::Pool { x, y } => {
                self.exact.pool_forward(x, y, n);
                self.weigh(x.t, n, k, self.value(x, n));
                self.mag.pool_forward(Input::plain(x.t), y, n);
                outs.push(self.by_mag(Place::Tensor(y), n, k));
                Some(y)
            }
            Forward::Join { a, b, y, .. } => {
                run_forward(&mut self.exact, op, n);
                let mut bound = vec![0.0; self.len(y, n)];
                for (value, error) in [Some(a), b].into_iter().flatten().map(|x| self.value(x, n)) {
                    bound.iter_mut().zip(value.iter().zip(error)).for_each(|(b, (v, e))| *b += 2.0 * v.abs() + e);
                }
                let want = self.exact.read_tensor(y, n);
                let coarse = want.iter().map(|v| v.abs()).collect();
                outs.push(Out { place: Place::Tensor(y), want, bound, coarse });
                Some(y)
            }
            Forward::MaxPool { x, y, .. } => {
                run_forward(&mut self.exact, op, n);
                // Which element wins is not looked at: the largest error of its channel.
                let (px, py) = (self.plane(x.t), self.plane(y));
                let mut errors = vec![0.0; px.c as usize];
                for (i, e) in self.value(x, n).1.into_iter().enumerate() {
                    let c = channel_of(px, i);
                    errors[c] = f64::max(errors[c], e);
                }
                let want = self.exact.read_tensor(y, n);
                let bound = (0..want.len()).map(|i| errors[channel_of(py, i)]).collect();
                let coarse = want.iter().map(|v| v.abs()).collect();
                outs.push(Out { place: Place::Tensor(y), want, bound, coarse });
                Some(y)
            }
            Forward::Stats { .. } => None,
        };
        y.into_iter().for_each(|y| self.adopt(y, n));
        // Statistics are those of the values as stored.
        if let Forward::Conv { stats: Some(norm), y: of, .. } | Forward::Stats { norm, x: of } = op {
            self.exact.norm_stats(norm, of, n);
            outs.push(self.statistics_taken(norm, of, n));
        }
        self.check(what, n, &outs);
    }

    /// A backward operation that writes a gradient of sums of `k` terms and parameter gradients of sums of `terms`.
    pub fn backward(&mut self, what: &str, op: Backward, n: usize, k: usize, terms: usize, params: &[ParamId]) {
        let (x, dy, dx) = parts(op);
        let sums: Vec<_> = dx.iter().flat_map(|d| d.finish.reduce).flatten().collect();
        let affine = sums.iter().flat_map(|s| <[ParamId; 2]>::from(self.affine(s.norm)));
        let nan = |p: ParamId| (p, vec![f64::NAN; self.exact.spec().params[p.0 as usize].range.len()]);
        let poison: Vec<_> = params.iter().copied().chain(affine).map(nan).collect();
        self.set_params(Store::Grads, &poison);

        self.weigh(dy.t, n, k.min(terms), self.grad_value(dy, n));
        match (op, x) {
            // Magnitudes have another maximum than the values.
            (Backward::MaxPool { .. }, Some(x)) => self.mag.write_tensor(x.t, n, &self.value(x, n).0),
            (_, Some(x)) => self.weigh(x.t, n, terms, self.value(x, n)),
            (_, None) => {}
        }
        run_backward(&mut self.mag, bare(op), n);
        run_backward(&mut self.exact, op, n);
        run_backward(&mut self.dev, op, n);

        let mut outs: Vec<Out> = params.iter().map(|&p| self.by_mag(Place::Grad(p), n, terms)).collect();
        if let Some(dx) = dx {
            let mut out = self.by_mag(Place::Tensor(dx.t), n, k);
            if let Mask::Positive(of) = dx.finish.mask {
                self.mask(&mut out, of, n);
            }
            outs.push(out);
            let g = f64s(&self.dev.read_tensor(dx.t, n));
            outs.extend(sums.iter().flat_map(|&s| self.sums(s, &g, n)));
        }
        self.check(what, n, &outs);
        if let Some(dx) = dx {
            self.adopt(dx.t, n);
        }
    }

    /// Where the mask is closed, zero is zero.
    fn mask(&self, out: &mut Out, of: Input, n: usize) {
        let (value, error) = self.value(of, n);
        for (((bound, coarse), v), e) in out.bound.iter_mut().zip(&mut out.coarse).zip(value).zip(error) {
            let clear = v == 0.0 || v.abs() > 2.0 * e * B::Real::EPS;
            assert!(clear, "the test's own data: {v} +- {e} eps is neither open nor closed");
            if v <= 0.0 {
                (*bound, *coarse) = (0.0, 0.0);
            }
        }
    }

    /// Random numbers in `dy` as the finished gradient of a norm's output, by way of `source`.
    pub fn set_grad(&mut self, dy: Grad, source: TensorId, n: usize, name: &str) {
        match dy.norm {
            None => self.set_normal(dy.t, n, name),
            Some(normed) => {
                self.set_normal(source, n, name);
                self.poison(dy.t);
                let finish = Finish { reduce: [Some(normed), None], ..Finish::default() };
                let dx = GradDst { t: dy.t, write: Write::Overwrite, finish };
                let op = Backward::Copy { dy: Grad::plain(source), dx };
                self.preparing = true;
                self.backward("copy_backward for a norm", op, n, 1, 1, &[]);
                self.preparing = false;
            }
        }
    }

    /// What `dx` holds before an op: NaN if it is overwritten, numbers if it is added to.
    pub fn prepare(&mut self, dx: GradDst, n: usize) {
        match dx.write {
            Write::Overwrite => self.poison(dx.t),
            Write::Accumulate => self.set_normal(dx.t, n, &format!("old {n}")),
        }
    }
}
