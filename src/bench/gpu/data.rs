//! What steps on a GPU are timed on.

use crate::bench::step::Config;
use crate::rng::{Purpose, Stream};

/// Most steps of a graph, as in training.
const STEPS_A_GRAPH: usize = 16;
/// Samples that there should be at least: fewer steps make a graph where there are few.
const SAMPLES: usize = 10;
/// Most bytes of images: fewer steps make a graph where they are large.
const IMAGE_BYTES: usize = 256 << 20;
/// Random bytes that the images are made of.
const POOL: usize = (1 << 20) + 7;

/// Random images as bytes, a batch for each step of a graph, with labels.
pub(super) struct Data {
    /// Batches: steps of a graph.
    pub steps: usize,
    batch: usize,
    /// Bytes of an image.
    image: usize,
    /// Bytes of one of its channels.
    plane: usize,
    /// In C,H,W order.
    pub pixels: Vec<u8>,
    pub labels: Vec<u32>,
    /// What each value becomes, a channel.
    pub tables: Vec<[f32; 256]>,
}

impl Data {
    pub fn new(config: &Config) -> Self {
        let plane = config.image_size * config.image_size;
        let image = config.channels * plane;
        let fits = IMAGE_BYTES / (config.batch * image).max(1);
        let steps = (config.steps / SAMPLES).min(STEPS_A_GRAPH).min(fits).max(1);
        let bytes = Stream::new(config.seed, Purpose::Data, "bench images");
        let labels = Stream::new(config.seed, Purpose::Data, "bench labels");
        let images = steps * config.batch;
        let pool: Vec<u8> = (0..POOL.min(images * image) as u64).map(|i| bytes.below(i, 256) as u8).collect();
        // Of mean 0 and variance 1, as a data set is normalised.
        let table = std::array::from_fn(|v| (v as f32 - 127.5) / 73.9);
        Data {
            steps,
            batch: config.batch,
            image,
            plane,
            pixels: pool.iter().copied().cycle().take(images * image).collect(),
            labels: (0..images as u64).map(|i| labels.below(i, config.classes as u64) as u32).collect(),
            tables: vec![table; config.channels],
        }
    }

    /// The first `n` images of a step's batch as the device sees them, and their labels.
    pub fn batch(&self, step: usize, n: usize) -> (Vec<f32>, &[u32]) {
        let first = step * self.batch;
        let pixels = &self.pixels[first * self.image..][..n * self.image];
        let value = |(i, &v): (usize, &u8)| self.tables[i % self.image / self.plane][usize::from(v)];
        (pixels.iter().enumerate().map(value).collect(), &self.labels[first..][..n])
    }

    /// What it takes on the device, with the order of an epoch.
    pub fn bytes(&self) -> u64 {
        (self.pixels.len() + 8 * self.labels.len()) as u64
    }
}
