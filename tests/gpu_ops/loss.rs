//! The cross-entropy kernels against f64.

use super::held::{ELEMENTS, Held, close, eps, normal, pad, padded, store_error, stored};
use sparse_engine::backend::gpu::Driver;
use sparse_engine::backend::gpu::ops::loss::{CrossEntropy, LossOut, RowLoss, cross_entropy};
use sparse_engine::backend::gpu::ops::operand::Element;
use sparse_engine::backend::gpu::ops::state::StepState;

on_every_device!(loss_and_gradient, ties_and_nan, places_and_the_sticky_word);

const F32: Element = Element::F32;

/// One loss on the device; the scratch is poisoned and, like all buffers, of exactly the size promised.
struct Case<'a, D: Driver> {
    driver: &'a D,
    element: Element,
    n: usize,
    classes: usize,
    logits: Held<'a, D>,
    labels: Held<'a, D>,
    rows: Held<'a, D>,
    out: Held<'a, D>,
    dlogits: Held<'a, D>,
}

impl<'a, D: Driver> Case<'a, D> {
    /// Padding channels of the logits hold NaN: they are nobody's class.
    fn new(driver: &'a D, element: Element, logits: &[f64], labels: &[u32], classes: usize) -> Self {
        let (n, cp) = (labels.len(), padded(classes));
        let mut z = pad(logits, classes);
        z.iter_mut().enumerate().filter(|(i, _)| i % cp >= classes).for_each(|(_, v)| *v = f64::NAN);
        Case {
            driver,
            element,
            n,
            classes,
            logits: Held::numbers(driver, F32, &z),
            labels: Held::of(driver, labels),
            rows: Held::poisoned(driver, size_of::<RowLoss>() * n),
            out: Held::poisoned(driver, size_of::<LossOut>()),
            dlogits: Held::room(driver, element, n * cp),
        }
    }

    fn args(&self, smoothing: f64) -> CrossEntropy {
        CrossEntropy {
            logits: self.logits.at(),
            labels: self.labels.at(),
            dlogits: self.dlogits.at(),
            rows: self.rows.at(),
            out: self.out.at(),
            smoothing,
            n: self.n as u32,
            classes: self.classes as u32,
            ..CrossEntropy::default()
        }
    }

    fn run(&self, args: &CrossEntropy) -> LossOut {
        // SAFETY: buffers of exactly the sizes that are promised.
        unsafe { cross_entropy(self.driver, self.element, args) }.unwrap();
        self.out.get::<LossOut>()[0]
    }
}

fn loss_and_gradient<D: Driver>(driver: &D) {
    for (classes, n) in [(1, 2), (2, 1), (3, 9), (10, 128), (10, 33), (17, 300), (100, 7), (1000, 5), (1003, 2)] {
        let mut logits: Vec<f64> = normal("z", n * classes).iter().map(|v| 3.0 * v).collect();
        if n > 3 {
            logits[..classes].iter_mut().for_each(|v| *v *= 300.0); // exp of it is beyond any float
            logits[classes..2 * classes].fill(1.5); // a tie of all: class 0
        }
        let logits = stored(F32, &logits);
        let labels: Vec<u32> = (0..n).map(|i| ((i * 7 + n) % classes) as u32).collect();
        for element in ELEMENTS {
            for smoothing in [0.0, 0.1, 1.0] {
                for scale in [None, Some(1.0f32), Some(4096.0)] {
                    let case = Case::new(driver, element, &logits, &labels, classes);
                    check(&case, &logits, &labels, smoothing, scale);
                }
            }
        }
    }
}

fn check<D: Driver>(case: &Case<D>, logits: &[f64], labels: &[u32], smoothing: f64, scale: Option<f32>) {
    let Case { driver, element, n, classes, .. } = *case;
    let what = format!("{element:?}, {n} of {classes} classes, smoothing {smoothing}, scale {scale:?}");
    let state =
        Held::of(driver, &[StepState { loss_scale: scale.unwrap_or(f32::NAN), step: 5, ..StepState::default() }]);
    let mut args = case.args(smoothing);
    args.state = if scale.is_some() { state.at() } else { 0 };
    let got = case.run(&args);

    let (mut loss, mut size, mut correct, mut grad, mut bound) = (0.0, 0.0, 0, vec![], vec![]);
    for (z, &label) in logits.chunks(classes).zip(labels) {
        let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = top + z.iter().map(|z| (z - top).exp()).sum::<f64>().ln();
        let mean = z.iter().sum::<f64>() / classes as f64;
        loss += lse - (1.0 - smoothing) * z[label as usize] - smoothing * mean;
        size += lse.abs() + z.iter().fold(0.0, |m: f64, z| m.max(z.abs())) + 1.0;
        correct += u64::from(z.iter().position(|z| *z == top) == Some(label as usize));
        let factor = f64::from(scale.unwrap_or(1.0)) / n as f64;
        for (c, z) in z.iter().enumerate() {
            let target = smoothing / classes as f64 + if c == label as usize { 1.0 - smoothing } else { 0.0 };
            let g = ((z - lse).exp() - target) * factor;
            grad.push(g);
            // Double throughout: then two roundings, to f32 and to the type. The argument of exp loses digits by its size.
            bound.push(store_error(element, g) + g.abs() * eps(F32) + 1e-13 * factor * (1.0 + lse.abs()));
        }
        grad.resize(grad.len().next_multiple_of(8), 0.0);
        bound.resize(grad.len(), 0.0);
    }
    // Double throughout.
    close(&format!("{what}: loss"), &[got.loss_sum], &[loss], &[1e-13 * size]);
    assert_eq!(got.correct, correct, "{what}");
    close(&format!("{what}: gradient"), &case.dlogits.f64s(element), &grad, &bound);
    if scale.is_some() {
        let state = state.get::<StepState>()[0];
        assert_eq!((state.broken, state.step, state.hold), (0, 5, 0), "{what}");
    }

    args.dlogits = 0;
    let before = case.dlogits.get::<u8>();
    assert_eq!(case.run(&args), got, "{what}: the loss must not depend on whether a gradient is wanted");
    assert_eq!(case.dlogits.get::<u8>(), before, "{what}: no gradient is wanted");
}

fn ties_and_nan<D: Driver>(driver: &D) {
    for classes in [2usize, 3, 10, 40, 100] {
        let last = classes as u32 - 1;
        let loss = |rows: &[Vec<f64>], labels: &[u32]| {
            let case = Case::new(driver, F32, &rows.concat(), labels, classes);
            (case.run(&case.args(0.0)), case.dlogits.f64s(F32))
        };
        let mut tie = vec![-1.0; classes];
        tie[last as usize] = 2.0;
        tie[last as usize - 1] = 2.0;
        assert_eq!(loss(&[tie.clone(), tie.clone()], &[last, last - 1]).0.correct, 1, "a tie goes to the lower class");
        for at in [0, classes / 2, classes - 1] {
            for bad in [f64::NAN, f64::INFINITY] {
                let mut row = tie.clone();
                row[at] = bad;
                for label in [0, last - 1, last] {
                    let (l, grad) = loss(&[row.clone()], &[label]);
                    assert!(l.loss_sum.is_nan(), "{bad} at {at}, label {label}: {l:?}");
                    let right = bad == f64::INFINITY && at == label as usize;
                    assert_eq!(l.correct, u64::from(right), "{bad} at {at}, label {label}");
                    assert!(grad[..classes].iter().all(|g| g.is_nan()) && grad[classes..].iter().all(|g| *g == 0.0));
                }
            }
        }
        let (l, grad) = loss(&[vec![f64::NAN; classes], tie.clone()], &[0, last - 1]);
        assert!(l.correct == 1 && l.loss_sum.is_nan(), "a NaN row beside a good one: {l:?}");
        assert!(grad[padded(classes)..].iter().all(|g| g.is_finite()), "the good row keeps its gradient");
        let (l, _) = loss(&[tie], &[classes as u32]);
        assert!(l.correct == 0 && l.loss_sum.is_nan(), "a label that is no class: {l:?}");
    }
}

/// Each batch has a place of its own; the first whose sum is not finite leaves its step's number, later ones do not.
fn places_and_the_sticky_word<D: Driver>(driver: &D) {
    let (n, classes) = (700, 10); // more images than threads of the sum
    let good = stored(F32, &normal("z", n * classes));
    let mut bad = good.clone();
    bad[classes * 300 + 3] = f64::NAN;
    let labels: Vec<u32> = (0..n as u32).map(|i| i % 10).collect();
    let empty = LossOut { loss_sum: 2.5, correct: 7 };
    let places = Held::of(driver, &[empty; 6]);
    let mut index = Held::of(driver, &[0u64]);
    let mut state = Held::of(driver, &[StepState { loss_scale: 1.0, ..StepState::default() }]);
    let mut want = [empty; 6];
    for (step, logits, broken) in [(1u64, &good, 0u64), (2, &good, 0), (3, &bad, 3), (4, &bad, 3), (5, &good, 3)] {
        let now = StepState { step, ..state.get::<StepState>()[0] };
        state.put(&[now]);
        index.put(&[step]);
        let case = Case::new(driver, F32, logits, &labels, classes);
        let sum = case.run(&case.args(0.0));
        assert!(sum.correct > 0);
        want[step as usize] = sum;
        let mut args = CrossEntropy { out: places.at(), index: index.at(), state: state.at(), ..case.args(0.0) };
        case.run(&args);
        let bits = |all: &[LossOut]| all.iter().map(|l| (l.loss_sum.to_bits(), l.correct)).collect::<Vec<_>>();
        assert_eq!(bits(&places.get::<LossOut>()), bits(&want), "step {step}");
        assert_eq!(state.get::<StepState>()[0], StepState { broken, ..now }, "step {step}");
        // Without a result or a state: nothing of them is written.
        (args.out, args.state) = (0, 0);
        case.run(&args);
        assert_eq!(bits(&places.get::<LossOut>()), bits(&want), "step {step}");
        assert_eq!(state.get::<StepState>()[0].broken, broken);
    }
    let case = Case::new(driver, F32, &good[..classes], &labels[..1], classes);
    for (n, classes) in [(0, 10), (1, 0)] {
        // SAFETY: it must be refused.
        assert!(unsafe { cross_entropy(driver, F32, &CrossEntropy { n, classes, ..case.args(0.0) }) }.is_err());
    }
}
