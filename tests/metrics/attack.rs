//! FGSM: the seed of the backward pass, the perturbation, epsilons.

use super::{close, fixture, numbers};
use sparse_engine::metrics::{Epsilon, Fgsm, Space, gradient_seeds};

#[derive(serde::Deserialize)]
pub struct Case {
    classes: usize,
    plane: usize,
    mean: Vec<f64>,
    std: Vec<f64>,
    weight: Vec<f32>,
    images: Vec<f32>,
    labels: Vec<u32>,
    logits: Vec<f32>,
    signs: Vec<i32>,
    cases: Vec<Moved>,
}

#[derive(serde::Deserialize)]
struct Moved {
    epsilon: f64,
    pixel: Vec<f64>,
    normalised: Vec<f64>,
}

/// The gradient of a linear model with respect to its images, from the seeds.
fn backward(case: &Case, seeds: &[f32]) -> Vec<f32> {
    let size = case.weight.len() / case.classes;
    let of = |seed: &[f32], i: usize| (0..case.classes).map(|c| seed[c] * case.weight[c * size + i]).sum::<f32>();
    seeds.chunks_exact(case.classes).flat_map(|seed| (0..size).map(move |i| of(seed, i))).collect()
}

#[test]
fn equal_to_torch() {
    let case = fixture().fgsm;
    let seeds = gradient_seeds(&case.logits, case.classes, &case.labels).unwrap();
    let gradient = backward(&case, &seeds);
    // In f32, the image that is right by 200 included.
    let signs: Vec<i32> = gradient.iter().map(|g| i32::from(*g > 0.0) - i32::from(*g < 0.0)).collect();
    assert_eq!(signs, case.signs);
    let zeros = case.signs.iter().filter(|&&sign| sign == 0).count() as u64;
    assert_eq!(zeros, case.labels.len() as u64, "the column of zeros");
    assert_eq!(case.cases.len(), 2);
    for Moved { epsilon, pixel, normalised } in case.cases {
        for (space, want) in [(Space::Pixel, &pixel), (Space::Normalised, &normalised)] {
            let fgsm = Fgsm { epsilon, space, mean: &case.mean, std: &case.std };
            let got = fgsm.perturb(&case.images, &gradient, case.plane).unwrap();
            assert_eq!((got.zero_gradients, got.images.len()), (zeros, want.len()));
            for (i, (got, want)) in got.images.iter().zip(want).enumerate() {
                // Two f32 steps of values below 4.
                close(f64::from(*got), *want, 4.0 * f64::from(f32::EPSILON), &format!("{space:?} {epsilon}, {i}"));
            }
        }
    }
}

#[test]
fn seeds_point_where_the_loss_grows() {
    let mut number = numbers(1);
    for classes in [2usize, 3, 10, 1000] {
        let logits: Vec<f32> = (0..classes).map(|_| (number() * 8.0 - 4.0) as f32).collect();
        let label = (number() * classes as f64) as usize;
        let seed = gradient_seeds(&logits, classes, &[label as u32]).unwrap();
        assert_eq!(seed[label], -1.0);
        // softmax - onehot, computed plainly, is the seed times 1 - p.
        let exps: Vec<f64> = logits.iter().map(|&z| f64::from(z).exp()).collect();
        let sum: f64 = exps.iter().sum();
        let rest = 1.0 - exps[label] / sum;
        for (class, (&got, exp)) in seed.iter().zip(&exps).enumerate() {
            let want = exp / sum - f64::from(u8::from(class == label));
            close(f64::from(got) * rest, want, 1e-7, &format!("class {class} of {classes}"));
        }
        let total: f64 = seed.iter().map(|&d| f64::from(d)).sum();
        close(total, 0.0, classes as f64 * 1e-7, "the sum over the classes");
    }
}

#[test]
fn confident_images_keep_their_gradient() {
    for margin in [17.0f32, 200.0, 1e30] {
        let logits = [0.0, margin, 0.0, -1.0];
        let seed = gradient_seeds(&logits, 4, &[1]).unwrap();
        assert_eq!((seed[0], seed[1]), (seed[2], -1.0), "margin {margin}");
        assert!(seed[0] > 0.4 && seed[3] > 0.1, "margin {margin}: {seed:?}");
        // Confidently wrong: all of it is between two classes, but for what 2 e^-17 takes.
        let wrong = gradient_seeds(&logits, 4, &[0]).unwrap();
        assert_eq!(wrong[0], -1.0, "margin {margin}");
        close(f64::from(wrong[1]), 1.0, 1.1 * 2.5 * (-17f64).exp(), &format!("margin {margin}"));
    }
    assert_eq!(gradient_seeds(&[3.0, -9.0], 1, &[0, 0]).unwrap(), [0.0, 0.0], "one class: nothing to lose");
    assert!(gradient_seeds(&[], 3, &[]).unwrap().is_empty());
}

#[test]
fn no_pixel_moves_by_more_than_epsilon() {
    let mut number = numbers(2);
    let (channels, plane, n) = (3, 35, 40);
    let count = n * channels * plane;
    for epsilon in [8.0 / 255.0, 1.0 / 255.0, 0.1, 1e-3, 1e-7, 1e-12, 1.0, 7.5, 1e30] {
        let mean: Vec<f64> = (0..channels).map(|_| number()).collect();
        let std: Vec<f64> = (0..channels).map(|_| 0.01 + number() * 2.0).collect();
        let channel = |i: usize| i / plane % channels;
        // 8-bit pixels, both ends often; some between, and some a little outside as rounding elsewhere may leave them.
        let pixel = |number: &mut dyn FnMut() -> f64| match (number() * 6.0) as u32 {
            0 => 0.0,
            1 => 1.0,
            2 => number() * 1.2 - 0.1,
            _ => (number() * 256.0).floor() / 255.0,
        };
        let images: Vec<f32> =
            (0..count).map(|i| ((pixel(&mut number) - mean[channel(i)]) / std[channel(i)]) as f32).collect();
        let gradient: Vec<f32> = (0..count).map(|i| if i % 9 == 0 { 0.0 } else { number() as f32 - 0.5 }).collect();
        for (space, units) in [(Space::Pixel, std.clone()), (Space::Normalised, vec![1.0; channels])] {
            let fgsm = Fgsm { epsilon, space, mean: &mean, std: &std };
            let got = fgsm.perturb(&images, &gradient, plane).unwrap();
            assert_eq!(got.zero_gradients, gradient.iter().filter(|&&g| g == 0.0).count() as u64);
            let (mut full, mut clipped) = (0, 0);
            for (i, ((&x, &y), &g)) in images.iter().zip(&got.images).zip(&gradient).enumerate() {
                let c = channel(i);
                let [lo, hi] = [0.0, 1.0].map(|p| ((p - mean[c]) / std[c]) as f32);
                let moved = (f64::from(y) - f64::from(x)) * units[c];
                assert!(moved.abs() <= epsilon, "{space:?} {epsilon}: {x} to {y} is {moved}");
                assert!(y >= lo.min(x) && y <= hi.max(x), "{x} to {y} leaves {lo} to {hi}");
                assert!(g != 0.0 || y.to_bits() == x.to_bits(), "no gradient, no move");
                assert!(moved * f64::from(g) >= 0.0, "against the gradient");
                // All of epsilon but for the rounding of f32, unless it was clipped.
                let slack = 2.0 * f64::from(f32::EPSILON * x.abs().max(y.abs())) * units[c];
                let at_end = if g > 0.0 { y >= hi } else { y <= lo };
                full += usize::from(g != 0.0 && !at_end);
                clipped += usize::from(g != 0.0 && at_end);
                assert!(g == 0.0 || at_end || moved.abs() >= epsilon - slack, "{x} moved by {moved} of {epsilon}");
            }
            assert!(clipped > 0 && (full > 0 || epsilon >= 0.5), "{space:?} {epsilon}: {full} full, {clipped} clipped");
        }
    }
}

#[test]
fn epsilon_zero_changes_no_bit() {
    let images = [-0.0f32, 0.0, 1.5, -2.0, f32::MIN_POSITIVE / 2.0, 1e30, 0.1, 0.2];
    let gradient = [1.0f32, -1.0, 1.0, -1.0, 1.0, -1.0, 1e-40, 0.0];
    for space in [Space::Pixel, Space::Normalised] {
        for epsilon in [0.0, -0.0] {
            let fgsm = Fgsm { epsilon, space, mean: &[0.3, 0.6], std: &[0.2, 3.0] };
            let got = fgsm.perturb(&images, &gradient, 2).unwrap();
            assert_eq!(got.images.map_bits(), images.to_vec().map_bits(), "{space:?}");
            assert_eq!(got.zero_gradients, 1, "a denormal gradient has a sign");
        }
    }
}

trait MapBits {
    fn map_bits(&self) -> Vec<u32>;
}

impl MapBits for Vec<f32> {
    fn map_bits(&self) -> Vec<u32> {
        self.iter().map(|v| v.to_bits()).collect()
    }
}

#[test]
fn clipped_to_the_values_of_the_loader() {
    // Pixels 0 and 255 are as the loader normalises them, to the bit.
    let (mean, std) = ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]);
    let fgsm = Fgsm { epsilon: 1.0, space: Space::Pixel, mean: &mean, std: &std };
    for (p, g) in [(0.0, -1.0), (1.0, 1.0)] {
        let end: Vec<f32> = mean.iter().zip(&std).map(|(m, s)| ((p - m) / s) as f32).collect();
        let other: Vec<f32> = mean.iter().zip(&std).map(|(m, s)| ((0.5 - m) / s) as f32).collect();
        assert_eq!(fgsm.perturb(&end, &[g; 3], 1).unwrap().images, end);
        assert_eq!(fgsm.perturb(&other, &[g; 3], 1).unwrap().images, end);
    }
}

#[test]
fn what_cannot_be_attacked_is_refused() {
    let good = Fgsm { epsilon: 0.1, space: Space::Pixel, mean: &[0.5, 0.5], std: &[0.5, 0.5] };
    assert!(good.perturb(&[0.0; 12], &[1.0; 12], 3).is_ok());
    assert!(good.perturb(&[], &[], 3).unwrap().images.is_empty());
    for (fgsm, images, gradients, plane, says) in [
        (good, 12, 11, 3, "12 image values and 11 gradients"),
        (good, 9, 9, 3, "a multiple of 2 channels x 3 pixels"),
        (good, 12, 12, 0, "x 0 pixels"),
        (good, 12, 12, usize::MAX, "a multiple"),
        (Fgsm { epsilon: -0.1, ..good }, 12, 12, 3, "epsilon -0.1"),
        (Fgsm { epsilon: f64::NAN, ..good }, 12, 12, 3, "epsilon NaN"),
        (Fgsm { epsilon: f64::INFINITY, ..good }, 12, 12, 3, "epsilon inf"),
        (Fgsm { std: &[0.5, 0.0], ..good }, 12, 12, 3, "std above zero"),
        (Fgsm { std: &[0.5, f64::NAN], ..good }, 12, 12, 3, "std above zero"),
        (Fgsm { mean: &[0.5, f64::NAN], ..good }, 12, 12, 3, "finite"),
        (Fgsm { std: &[0.5], ..good }, 12, 12, 3, "one of each a channel"),
        (Fgsm { mean: &[], std: &[], ..good }, 12, 12, 3, "one of each a channel"),
    ] {
        let error = fgsm.perturb(&vec![0.0; images], &vec![1.0; gradients], plane).unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains('\n'), "{error}");
    }
    for bad in [f32::NAN, f32::INFINITY] {
        let mut values = [1.0f32; 12];
        values[10] = bad;
        for (images, gradient) in [(&values, &[1.0; 12]), (&[1.0; 12], &values)] {
            let error = good.perturb(images, gradient, 3).unwrap_err().to_string();
            assert!(error.starts_with("image 1, channel 1, pixel 1: ") && error.contains("diverged"), "{error}");
        }
    }
    for (logits, classes, labels, says) in [
        (&[0.0, f32::NAN, 1.0][..], 3, &[0u32][..], "image 0: the logit of class 1 is NaN"),
        (&[0.0, 1.0, f32::INFINITY, 0.0], 2, &[0, 0], "image 1: the logit of class 0 is inf"),
        (&[0.0, 1.0], 2, &[2], "image 0 has label 2"),
        (&[0.0, 1.0], 2, &[0, 1], "2 labels for the logits of 1 images"),
        (&[0.0, 1.0, 2.0], 2, &[0], "wanted a multiple of the 2 classes"),
        (&[], 0, &[], "at least one class"),
    ] {
        let error = gradient_seeds(logits, classes, labels).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn epsilons_as_they_are_written() {
    for (text, value) in [
        ("8/255", 8.0 / 255.0),
        ("0.03", 0.03),
        ("0", 0.0),
        ("-0", 0.0),
        (" 1 / 4 ", 0.25),
        ("1e-3", 1e-3),
        ("2.5/10", 0.25),
    ] {
        let epsilon: Epsilon = text.parse().unwrap();
        assert_eq!((epsilon.value().to_bits(), epsilon.to_string()), (f64::to_bits(value), text.trim().to_string()));
    }
    for text in ["", "-1", "8/-255", "1/0", "0/0", "nan", "inf", "1/inf/2", "8/", "/255", "8\\255", "1/2/3", "eight"] {
        let error = text.parse::<Epsilon>().unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains(&format!("epsilon {text:?}: wanted")), "{error}");
    }
    let list = |text| Epsilon::list(text).map(|all| all.iter().map(Epsilon::value).collect::<Vec<_>>());
    assert_eq!(list("0,8/255, 0.5").unwrap(), [0.0, 8.0 / 255.0, 0.5]);
    for text in ["", "0,,1", "0,", "0,x"] {
        assert_eq!(list(text).unwrap_err().exit_code(), 2, "{text}");
    }
}
