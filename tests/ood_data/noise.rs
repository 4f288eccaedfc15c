use crate::data_support::{idx_files, write_all};
use crate::{numbers, set, shape};
use sparse_engine::data::{ImageSet, ImageShape, PixelOrder, Split, ood};

fn noise(spec: &str, inside: &ImageSet, seed: u64) -> ImageSet {
    ood::open(spec, inside, seed).unwrap_or_else(|e| panic!("{e}"))
}

/// Images of one value.
fn flat(shape: ImageShape, n: usize, value: u8) -> ImageSet {
    let split = Split::from_memory(shape, PixelOrder::Chw, vec![value; n * shape.numel()], vec![0; n]).unwrap();
    ImageSet::of_split("flat", split, shape).unwrap()
}

fn mean_and_deviation(values: &[f32]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    (mean, (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt())
}

#[test]
fn gaussian_noise_has_its_deviation_and_is_clipped() {
    let inside = flat(shape(3, 16, 16), 130, 128);
    let n = 130.0 * 768.0f64; // 99,840 numbers
    for sigma in [0.02, 0.1] {
        let set = noise(&format!("gaussian({sigma})"), &inside, 5);
        assert_eq!((set.len(), set.name()), (130, format!("gaussian({sigma}) of flat").as_str()));
        let (mean, deviation) = mean_and_deviation(&numbers(&set, 50, 2));
        // Five standard errors; at 5 sigma from both edges nothing is clipped.
        assert!((mean - 128.0 / 255.0).abs() < 5.0 * sigma / n.sqrt(), "{mean}");
        assert!((deviation / sigma - 1.0).abs() < 5.0 / (2.0 * n).sqrt(), "{deviation}");
    }
    // From black, half is clipped to 0; P(x > 1) = P(z > 1) = 0.158655.
    let all = numbers(&noise("gaussian(1)", &flat(shape(1, 100, 100), 10, 0), 5), 4, 2);
    let share = |at: f32| all.iter().filter(|&&v| v == at).count() as f64 / 1e5;
    assert!((share(0.0) - 0.5).abs() < 5.0 * (0.25f64 / 1e5).sqrt(), "{}", share(0.0));
    assert!((share(1.0) - 0.158_655).abs() < 5.0 * (0.1335f64 / 1e5).sqrt(), "{}", share(1.0));
    assert!(all.iter().all(|v| (0.0..=1.0).contains(v)));
    // Not rounded to 8 bits.
    assert!(all.iter().any(|v| (v * 255.0).fract() > 0.1));
}

#[test]
fn no_noise_leaves_the_images_bit_for_bit() {
    let inside = set(shape(3, 6, 7), 11);
    let (clean, noisy) = (numbers(&inside, 4, 1), numbers(&noise("gaussian(0)", &inside, 5), 4, 1));
    assert!(clean.iter().zip(&noisy).all(|(a, b)| a.to_bits() == b.to_bits()));
}

#[test]
fn noise_depends_on_seed_and_position_alone() {
    let inside = set(shape(3, 9, 7), 20);
    for spec in ["gaussian(0.1)", "uniform", "hein"] {
        let bits = |set: &ImageSet, batch, threads| -> Vec<u32> {
            numbers(set, batch, threads).iter().map(|v| v.to_bits()).collect()
        };
        let reference = noise(spec, &inside, 7);
        assert_eq!((reference.len(), reference.has_labels()), (20, spec.starts_with('g')), "{spec}");
        let wanted = bits(&reference, 20, 0);
        for (batch, threads) in [(1, 1), (3, 4), (7, 2)] {
            assert!(bits(&reference, batch, threads) == wanted, "{spec}");
        }
        assert!(bits(&noise(spec, &inside, 7), 20, 0) == wanted, "{spec}");
        let other = bits(&noise(spec, &inside, 8), 20, 0);
        assert!(other.iter().zip(&wanted).filter(|(a, b)| a == b).count() < wanted.len() / 10, "{spec}: seeds agree");
        // No two images are alike.
        let images: std::collections::HashSet<&[u32]> = wanted.chunks_exact(189).collect();
        assert_eq!(images.len(), 20, "{spec}");
        // Restricted to a class (every fifth image), what is left is unchanged.
        let part = noise(spec, &inside.of_classes(&[3]).unwrap(), 7);
        let of_class: Vec<u32> =
            wanted.chunks_exact(189).enumerate().filter(|(i, _)| i % 5 == 3).flat_map(|(_, v)| v.to_vec()).collect();
        assert!(bits(&part, 3, 1) == of_class, "{spec}");
    }
}

#[test]
fn uniform_noise_is_uniform() {
    let all = numbers(&noise("uniform", &set(shape(1, 100, 100), 10), 3), 5, 2);
    let (mean, deviation) = mean_and_deviation(&all);
    assert!((mean - 0.5).abs() < 5.0 * (1.0f64 / 12.0 / 1e5).sqrt(), "{mean}");
    assert!((deviation - (1.0f64 / 12.0).sqrt()).abs() < 0.003, "{deviation}");
    let mut counts = [0; 10];
    all.iter().for_each(|v| counts[(v * 10.0).min(9.0) as usize] += 1);
    assert!(counts.iter().all(|c: &i32| (c - 10_000).abs() < 475), "{counts:?}"); // 5 sigma
}

#[test]
fn hein_noise_is_smooth_fills_the_range_and_is_half_permuted_images() {
    let to = shape(3, 32, 32);
    // All pixels of an image are one colour, but for one pixel: a permuted one is a bump in the same colours.
    let image = |i: usize| -> Vec<u8> {
        let colour = [10 + 20 * i, 200 - 15 * i, 90];
        let pixel = |k: usize| if k % 1024 == 5 { 255 } else { colour[k / 1024] as u8 };
        (0..3072).map(pixel).collect()
    };
    let split =
        Split::from_memory(to, PixelOrder::Chw, (0..10).flat_map(image).collect::<Vec<u8>>(), vec![0; 10]).unwrap();
    let set = noise("hein", &ImageSet::of_split("bumps", split, to).unwrap(), 3);
    let all = numbers(&set, 4, 2);
    for (i, image) in all.chunks_exact(3072).enumerate() {
        let (min, max) = image.iter().fold((f32::MAX, f32::MIN), |(a, b), &v| (a.min(v), b.max(v)));
        assert_eq!((min, max), (0.0, 1.0), "image {i}");
        // Neighbours are alike: white noise stretched to [0, 1] differs by a third of the range on average.
        let steps: f32 = image.chunks_exact(32).flat_map(|r| r.windows(2)).map(|p| (p[0] - p[1]).abs()).sum();
        assert!(steps / (96.0 * 31.0) < 0.15, "image {i}: {}", steps / (96.0 * 31.0));
        // A bump: almost all pixels of a channel have one value. Filtered uniform noise has no such value.
        let mut first: Vec<f32> = image[..1024].to_vec();
        first.sort_by(f32::total_cmp);
        let flat = first.iter().filter(|&&v| (v - first[400]).abs() < 1e-6).count() > 512;
        assert_eq!(flat, i % 2 == 0, "image {i}");
        if flat {
            // The channels' pixels moved together: the brightest is at one place.
            let peak = |c: usize| {
                let plane = &image[c * 1024..(c + 1) * 1024];
                (0..1024).max_by(|&a, &b| plane[a].total_cmp(&plane[b])).unwrap()
            };
            assert_eq!((peak(0), peak(1)), (peak(1), peak(2)), "image {i}");
        }
    }
    // An image of one value has no contrast to stretch; sizes below the filter's reach are no fault.
    for (to, value) in [(shape(1, 1, 1), 51), (shape(3, 2, 5), 51)] {
        let all = numbers(&noise("hein", &flat(to, 1, value), 3), 1, 0);
        assert!(all.iter().all(|v| (v - 0.2).abs() < 1e-6), "{all:?}");
    }
}

#[test]
fn specs_that_are_refused() {
    let inside = set(shape(1, 5, 4), 4);
    let error = |spec: &str| ood::open(spec, &inside, 0).err().unwrap_or_else(|| panic!("{spec} was accepted"));
    for (spec, code) in
        [("gaussian(x)", 2), ("gaussian", 2), ("builtin:mnist", 2), ("gausian(0.1)", 1), ("/nowhere", 1)]
    {
        assert_eq!(error(spec).exit_code(), code, "{spec}");
        assert!(!error(spec).to_string().contains('\n'));
    }
    let message = error("gausian(0.1)").to_string();
    assert!(message.contains("gausian(0.1)") && message.contains("gaussian(SIGMA), uniform or hein"), "{message}");
    let hein = noise("hein", &inside, 0);
    assert_eq!(ood::open("uniform", &hein, 0).err().unwrap().exit_code(), 2);
    // A path: what ImageSet::open finds there.
    let dir = tempfile::tempdir().unwrap();
    write_all(dir.path(), &idx_files(12, 10));
    let set = noise(dir.path().to_str().unwrap(), &inside, 0);
    assert_eq!((set.len(), set.shape()), (10, shape(1, 5, 4)));
}
