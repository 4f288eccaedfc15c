//! A gradient's destination with everything that completes it, and the check of what a kernel left there.

use super::held::{EPS, Held, close, normal, padded, store_error, stored, tensor};
use super::operand::Op;
use sparse_engine::backend::gpu::Driver;
use sparse_engine::backend::gpu::ops::operand::{Element, Finish, Reduce};

/// What completes a gradient.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub accumulate: bool,
    /// Kind and ReLU of the mask's operand.
    pub mask: Option<(u32, bool)>,
    pub reduces: usize,
}

impl Wanted {
    /// Every write rule, each kind of mask with some number of sums, each number of sums.
    pub fn all() -> Vec<Wanted> {
        let masks = [None, Some((0, false)), Some((1, false)), Some((1, true)), Some((2, false))];
        let mut all = vec![];
        for (i, mask) in masks.into_iter().enumerate() {
            for accumulate in [false, true] {
                let reduces = (i + usize::from(accumulate)) % 3;
                all.push(Wanted { accumulate, mask, reduces });
            }
        }
        all.push(Wanted { accumulate: true, mask: Some((1, true)), reduces: 2 });
        all.push(Wanted { accumulate: false, mask: None, reduces: 2 });
        all
    }
}

/// A destination of `rows` rows that `blocks` blocks write.
pub struct Dst<'a, D: Driver> {
    element: Element,
    c: usize,
    wanted: Wanted,
    old: Vec<f64>,
    mask: Option<Op<'a, D>>,
    /// Input and mean of each norm.
    norms: Vec<(Vec<f64>, Vec<f64>)>,
    dx: Held<'a, D>,
    partials: Vec<Held<'a, D>>,
    inputs: Vec<[Held<'a, D>; 2]>,
}

impl<'a, D: Driver> Dst<'a, D> {
    pub fn new(driver: &'a D, element: Element, (rows, c): (usize, usize), blocks: usize, wanted: Wanted) -> Self {
        let cp = padded(c);
        let old = tensor(element, "old", rows, c);
        let dx = if wanted.accumulate {
            Held::numbers(driver, element, &old)
        } else {
            Held::room(driver, element, rows * cp)
        };
        let mask = wanted.mask.map(|kind| {
            // Some exact zeros, where the gradient must not pass.
            let mut a = tensor(element, "mask a", rows, c);
            a.iter_mut().step_by(7).for_each(|v| *v = 0.0);
            Op::with(driver, element, "mask", a, c, kind)
        });
        let mut norms = vec![];
        for r in 0..wanted.reduces {
            let x = tensor(element, &format!("norm {r}"), rows, c);
            let mean = super::held::pad(&stored(Element::F32, &normal(&format!("mean {r}"), c)), c);
            norms.push((x, mean));
        }
        let partials = norms.iter().map(|_| Held::poisoned(driver, 8 * blocks * cp)).collect();
        let inputs = norms
            .iter()
            .map(|(x, mean)| [Held::numbers(driver, element, x), Held::numbers(driver, Element::F32, mean)])
            .collect();
        Dst { element, c, wanted, old, mask, norms, dx, partials, inputs }
    }

    /// For a launcher.
    pub fn finish(&self) -> Finish {
        let mut finish =
            Finish { dx: self.dx.at(), accumulate: u32::from(self.wanted.accumulate), ..Finish::default() };
        if let Some(mask) = &self.mask {
            (finish.mask, finish.has_mask) = (mask.operand(), 1);
        }
        // The second place alone where there is one.
        let places = if self.wanted.reduces == 1 { vec![1] } else { (0..self.wanted.reduces).collect() };
        for (place, ([x, mean], partials)) in places.into_iter().zip(self.inputs.iter().zip(&self.partials)) {
            finish.reduce[place] = Reduce { x: x.at(), mean: mean.at(), partials: partials.at() };
        }
        finish
    }

    /// `g`: the gradient that was finished, in f64, with bounds of its error, `[rows][cp]`; `block`: which block has a row.
    #[track_caller]
    pub fn check(&self, what: &str, g: &[f64], error: &[f64], block: impl Fn(usize) -> usize) {
        let cp = padded(self.c);
        let what = format!("{what}, {:?}, c {}, {} rows, {:?}", self.element, self.c, g.len() / cp, self.wanted);
        let got = self.dx.f64s(self.element);
        let (mut want, mut bound) = (g.to_vec(), error.to_vec());
        for i in 0..g.len() {
            if self.wanted.accumulate {
                bound[i] += EPS * (want[i].abs() + self.old[i].abs());
                want[i] += self.old[i];
            }
            if let Some(mask) = &self.mask {
                let (open, error) = mask.before_relu(i / cp, i % cp);
                let passes = if open.abs() < error { got[i] != 0.0 } else { open > 0.0 }; // rounding may open or close it
                if !passes {
                    (want[i], bound[i]) = (0.0, 0.0);
                }
            }
            if bound[i] > 0.0 || want[i] != 0.0 {
                bound[i] += store_error(self.element, want[i]);
            }
        }
        close(&what, &got, &want, &bound);
        let padding = got.iter().enumerate().filter(|(i, _)| i % cp >= self.c).all(|(_, v)| *v == 0.0);
        assert!(padding, "{what}: padding is not zero");

        for (r, ((x, mean), partials)) in self.norms.iter().zip(&self.partials).enumerate() {
            let sums = partials.f64s(Element::F32);
            let (mut want, mut size) = (vec![0.0; sums.len()], vec![0.0; sums.len()]);
            for (i, g) in got.iter().enumerate() {
                let (ch, at) = (i % cp, 2 * (block(i / cp) * cp + i % cp));
                want[at] += g;
                size[at] += g.abs();
                want[at + 1] += g * (x[i] - mean[ch]);
                size[at + 1] += g.abs() * (x[i].abs() + mean[ch].abs());
            }
            // At most 128 additions, of products rounded twice.
            let bound: Vec<f64> = size.iter().map(|s| 66.0 * EPS * s).collect();
            close(&format!("{what}: sums {r}"), &sums, &want, &bound);
        }
    }
}
