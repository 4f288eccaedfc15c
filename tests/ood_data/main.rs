//! Images to evaluate: SVHN, folders of image files, noise, and the rule that brings them to a network's shape.

#[path = "../data_support/mod.rs"]
mod data_support;

mod classes;
mod files;
mod hostile;
mod noise;
mod svhn;

use peak_alloc::PeakAlloc;
use sparse_engine::data::{ImageSet, ImageShape, PixelOrder, Preprocess, Split};
use std::path::Path;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

fn shape(c: usize, h: usize, w: usize) -> ImageShape {
    ImageShape { c, h, w }
}

/// Values come out as p / 255.
fn plain(c: usize) -> Preprocess {
    Preprocess { mean: vec![0.0; c], std: vec![1.0; c] }
}

/// All numbers, 1 is white.
fn numbers(set: &ImageSet, batch: usize, threads: usize) -> Vec<f32> {
    let batches = set.batches(batch, &plain(set.shape().c), threads).unwrap();
    batches.flat_map(|b| b.unwrap_or_else(|e| panic!("{e}")).images).collect()
}

/// All pixels, N,C,H,W.
fn pixels(set: &ImageSet) -> Vec<u8> {
    let whole = |v: &f32| {
        let p = (v * 255.0).round();
        assert_eq!((f64::from(p) / 255.0) as f32, *v, "not a pixel");
        p as u8
    };
    numbers(set, 3, 2).iter().map(whole).collect()
}

fn folder(path: &Path, shape: ImageShape) -> ImageSet {
    ImageSet::open(path.to_str().unwrap(), shape).unwrap_or_else(|e| panic!("{e}"))
}

/// A split of random-looking bytes; labels 0 to 4.
fn split(shape: ImageShape, n: usize) -> Split {
    let mut state = 12345u32;
    let bytes: Vec<u8> = (0..n * shape.numel())
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    Split::from_memory(shape, PixelOrder::Chw, bytes, (0..n as u32).map(|i| i % 5).collect()).unwrap()
}

fn set(shape: ImageShape, n: usize) -> ImageSet {
    ImageSet::of_split("toy", split(shape, n), shape).unwrap()
}
