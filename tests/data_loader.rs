//! Splits and batches: what the loader gives is a pure function of (split, seed, epoch, batch index).

use sparse_engine::data::{Augment, Batch, ImageShape, Loader, PadMode, PixelOrder, Preprocess, Split};

/// Seven columns: a reflected crop of five, shifted by two, reads the same from both ends.
const SHAPE: ImageShape = ImageShape { c: 3, h: 6, w: 7 };

/// Images of random-looking bytes, the label is the position.
fn split(n: usize) -> Split {
    let mut state = 12345u32;
    let bytes: Vec<u8> = (0..n * SHAPE.numel())
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    Split::from_memory(SHAPE, PixelOrder::Chw, bytes, (0..n as u32).collect()).unwrap()
}

/// Values come out as p / 255.
fn plain() -> Preprocess {
    Preprocess { mean: vec![0.0; 3], std: vec![1.0; 3] }
}

const CROP: Augment = Augment { pad: 2, pad_mode: PadMode::Reflect, flip: true };

fn loader(n: usize, batch: usize, augment: Option<Augment>, seed: u64, threads: usize) -> Loader {
    Loader::new(split(n), batch, plain(), augment, seed, threads).unwrap()
}

fn epoch(loader: &Loader, epoch: u64, first: usize) -> Vec<Batch> {
    loader.epoch(epoch, first).collect()
}

/// (label, image) of each sample in order.
fn samples(batches: &[Batch]) -> Vec<(u32, Vec<u32>)> {
    let size = SHAPE.numel();
    let one = |b: &Batch| -> Vec<(u32, Vec<u32>)> {
        assert_eq!((b.labels.len(), b.images.len()), (b.n, b.n * size));
        let image = |i: usize| b.images[i * size..(i + 1) * size].iter().map(|v| v.to_bits()).collect();
        (0..b.n).map(|i| (b.labels[i], image(i))).collect()
    };
    batches.iter().flat_map(one).collect()
}

#[test]
fn the_same_batches_for_any_thread_count_and_from_any_batch() {
    let reference = epoch(&loader(103, 10, Some(CROP), 7, 0), 3, 0);
    assert_eq!(reference.len(), 11);
    assert_eq!(reference.iter().map(|b| b.n).collect::<Vec<_>>(), [10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 3]);
    for threads in [1, 2, 3, 16] {
        let l = loader(103, 10, Some(CROP), 7, threads);
        assert_eq!(l.batches(), 11);
        assert!(epoch(&l, 3, 0) == reference, "{threads} threads");
        for first in [1, 6, 10, 11, 50] {
            assert!(epoch(&l, 3, first) == reference[first.min(11)..], "{threads} threads from batch {first}");
        }
        let mut early = l.epoch(3, 0);
        assert!(early.next().as_ref() == Some(&reference[0]));
    }
    // Another batch size gives the same samples in the same order.
    assert!(samples(&epoch(&loader(103, 32, Some(CROP), 7, 2), 3, 0)) == samples(&reference));
}

#[test]
fn every_image_once_in_an_order_of_its_own_each_epoch_and_seed() {
    let labels = |seed, e| -> Vec<u32> {
        epoch(&loader(103, 10, Some(CROP), seed, 2), e, 0).iter().flat_map(|b| b.labels.clone()).collect()
    };
    let mut orders = vec![labels(7, 0), labels(7, 1), labels(8, 0), (0..103).collect()];
    for (i, order) in orders.iter().enumerate() {
        assert!(orders[..i].iter().all(|other| other != order));
    }
    for order in &mut orders {
        order.sort_unstable();
        assert!(order.iter().copied().eq(0..103));
    }
}

#[test]
fn evaluation_is_file_order_unchanged() {
    let split = split(25);
    let preprocess = Preprocess { mean: vec![0.1, 0.2, 0.3], std: vec![0.5, 0.25, 2.0] };
    let l = Loader::new(split.clone(), 8, preprocess.clone(), None, 1, 2).unwrap();
    for e in [0, 9] {
        let got = samples(&epoch(&l, e, 0));
        assert_eq!(got.len(), 25);
        for (i, (label, image)) in got.iter().enumerate() {
            assert_eq!(*label, i as u32);
            let mut stored = vec![0; SHAPE.numel()];
            split.image(i, &mut stored);
            for (k, (&bits, &v)) in image.iter().zip(&stored).enumerate() {
                let c = k / 42;
                assert_eq!(
                    f32::from_bits(bits),
                    ((f64::from(v) / 255.0 - preprocess.mean[c]) / preprocess.std[c]) as f32
                );
            }
        }
    }
}

/// The crop and flip that made `image` of image `label`, found by trying all.
fn crop_of(split: &Split, label: u32, image: &[u32], pad_mode: PadMode) -> (isize, isize, bool) {
    let mut stored = vec![0; SHAPE.numel()];
    split.image(label as usize, &mut stored);
    let pixel = |c: usize, y: isize, x: isize| -> f32 {
        let reflect = |v: isize, n: isize| {
            if v < 0 {
                -v
            } else if v >= n {
                2 * (n - 1) - v
            } else {
                v
            }
        };
        let (ry, rx) = (reflect(y, 6), reflect(x, 7));
        if pad_mode == PadMode::Zero && (ry, rx) != (y, x) {
            return 0.0;
        }
        (f64::from(stored[c * 42 + ry as usize * 7 + rx as usize]) / 255.0) as f32
    };
    let mut found = Vec::new();
    for (top, left) in (-2..=2).flat_map(|t| (-2..=2).map(move |l| (t, l))) {
        for flip in [false, true] {
            let fits = (0..126).all(|k: isize| {
                let (c, y, x) = (k / 42, k % 42 / 7, k % 7);
                let x = if flip { 6 - x } else { x };
                pixel(c as usize, y + top, x + left).to_bits() == image[k as usize]
            });
            if fits {
                found.push((top, left, flip));
            }
        }
    }
    assert_eq!(found.len(), 1, "image {label} fits {found:?}");
    found[0]
}

#[test]
fn each_sample_has_a_crop_and_flip_of_its_own() {
    let n = 400;
    for pad_mode in [PadMode::Reflect, PadMode::Zero] {
        let split = split(n);
        let augment = Augment { pad_mode, ..CROP };
        let l = Loader::new(split.clone(), 64, plain(), Some(augment), 5, 2).unwrap();
        let crops = |e| -> Vec<(u32, (isize, isize, bool))> {
            let mut all: Vec<_> = samples(&epoch(&l, e, 0))
                .iter()
                .map(|(label, image)| (*label, crop_of(&split, *label, image, pad_mode)))
                .collect();
            all.sort_unstable();
            all
        };
        let (first, second) = (crops(0), crops(1));
        for place in (-2..=2).flat_map(|t| (-2..=2).map(move |l| (t, l))) {
            let count = first.iter().filter(|(_, c)| (c.0, c.1) == place).count();
            assert!((1..=40).contains(&count), "{place:?}: {count} of 400, wanted about 16");
        }
        let flips = first.iter().filter(|(_, c)| c.2).count();
        assert!((150..=250).contains(&flips), "{flips} of 400 flipped"); // 5 sigma
        // Other epochs draw anew: a sample keeps its crop and flip with probability 1/50.
        let kept = first.iter().zip(&second).filter(|(a, b)| a == b).count();
        assert!(kept < 30, "{kept} of 400 samples were cropped the same in both epochs");
    }
}

#[test]
fn cutting_off_a_validation_split_leaves_the_crops_as_they_were() {
    let whole = split(60);
    let (rest, last) = whole.split_last(20).unwrap();
    let run = |s: &Split| {
        let mut all = samples(&epoch(&Loader::new(s.clone(), 7, plain(), Some(CROP), 5, 1).unwrap(), 2, 0));
        all.sort_unstable();
        all
    };
    let together = [run(&rest), run(&last)].concat();
    assert!(together == run(&whole));
}

#[test]
fn validation_is_exactly_the_last_images() {
    let whole = split(60);
    let (rest, last) = whole.split_last(20).unwrap();
    assert_eq!((rest.len(), last.len()), (40, 20));
    assert!((0..40).all(|i| rest.label(i) == i as u32 && rest.position(i) == i));
    assert!((0..20).all(|i| last.label(i) == 40 + i as u32 && last.position(i) == 40 + i));
    let (mut a, mut b) = (vec![0; SHAPE.numel()], vec![1; SHAPE.numel()]);
    last.image(3, &mut a);
    whole.image(43, &mut b);
    assert_eq!(a, b);
    let (again, tail) = rest.split_last(5).unwrap();
    assert_eq!((again.len(), tail.len(), tail.label(0)), (35, 5, 35));
    let (all, none) = whole.split_last(0).unwrap();
    assert_eq!((all.len(), none.len(), none.is_empty()), (60, 0, true));
    for count in [60, 61, usize::MAX] {
        let error = whole.split_last(count).err().unwrap();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("60 training images"), "{error}");
    }
    assert_eq!(Loader::new(none, 8, plain(), None, 0, 2).unwrap().epoch(0, 0).count(), 0);
}

#[test]
fn mean_and_deviation_equal_a_two_pass_computation() {
    let (rest, last) = split(90).split_last(31).unwrap();
    for s in [rest, last] {
        let (mean, std) = s.mean_std();
        for c in 0..3 {
            let mut values = Vec::new();
            let mut image = vec![0; SHAPE.numel()];
            for i in 0..s.len() {
                s.image(i, &mut image);
                values.extend(image[c * 42..(c + 1) * 42].iter().map(|&v| f64::from(v) / 255.0));
            }
            let n = values.len() as f64;
            let m = values.iter().sum::<f64>() / n;
            let d = (values.iter().map(|v| (v - m) * (v - m)).sum::<f64>() / n).sqrt();
            assert!((mean[c] - m).abs() < 1e-13 && (std[c] - d).abs() < 1e-13, "{} {m} {} {d}", mean[c], std[c]);
        }
    }
}

#[test]
fn a_loader_of_what_does_not_fit_is_refused() {
    let new = |batch, preprocess, augment| Loader::new(split(4), batch, preprocess, augment, 0, 1).err().unwrap();
    for error in [
        new(0, plain(), None),
        new(2, Preprocess { mean: vec![0.0], std: vec![1.0] }, None),
        new(2, Preprocess { mean: vec![0.0; 3], std: vec![0.0; 3] }, None),
        new(2, plain(), Some(Augment { pad: 6, ..CROP })),
    ] {
        assert_eq!(error.exit_code(), 2, "{error}");
    }
}
