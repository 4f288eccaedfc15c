//! Which training images the weights are scored on. Drawn from streams of their own, which no epoch uses: batches and
//! augmentation of the run stay as they are.

use crate::error::{Error, Result};
use crate::rng::{Purpose, Stream};

/// How GraSP's images are cut in two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Halves {
    /// The lower half of the classes, and the upper, as the paper's code has it; of an odd number the upper has one more.
    #[default]
    ByClass,
    /// Every second image, classes in both.
    Alternating,
}

/// Images for SNIP: the first `samples` of a random order of `images` training images.
///
/// # Errors
/// No samples, or more than there are images.
pub fn snip_samples(images: usize, samples: usize, seed: u64) -> Result<Vec<usize>> {
    if !(1..=images).contains(&samples) {
        return Err(Error::Usage(format!("images for SNIP: wanted 1 to {images}, the training images, got {samples}")));
    }
    let order = Stream::new(seed, Purpose::Data, "snip samples").permutation(images);
    Ok(order[..samples].iter().map(|&i| i as usize).collect())
}

/// Images for GraSP: of each of `classes` classes the first `per_class` in a random order of the training images, whose
/// `labels` are given; in order of class, cut in two halves.
///
/// # Errors
/// A class with fewer images, a label out of range, no images a class, or a half without images.
pub fn grasp_samples(
    labels: &[u32],
    classes: usize,
    per_class: usize,
    halves: Halves,
    seed: u64,
) -> Result<[Vec<usize>; 2]> {
    if per_class == 0 || classes < 2 {
        return Err(Error::Usage(format!(
            "images for GraSP: wanted at least 1 of each of at least 2 classes, got {per_class} of {classes}"
        )));
    }
    let mut of_class: Vec<Vec<usize>> = vec![vec![]; classes];
    for i in Stream::new(seed, Purpose::Data, "grasp samples").permutation(labels.len()) {
        let label = labels[i as usize] as usize;
        let found = of_class.get_mut(label).ok_or_else(|| {
            Error::Usage(format!("images for GraSP: image {i} has label {label}, wanted 0 to {}", classes - 1))
        })?;
        if found.len() < per_class {
            found.push(i as usize);
        }
    }
    if let Some((class, found)) = of_class.iter().enumerate().find(|(_, found)| found.len() < per_class) {
        return Err(Error::Usage(format!(
            "images for GraSP: wanted {per_class} of each class, class {class} has {} among the training images; ask for \
             fewer images a class",
            found.len()
        )));
    }
    Ok(match halves {
        Halves::ByClass => {
            let (lower, upper) = of_class.split_at(classes / 2);
            [lower.concat(), upper.concat()]
        }
        Halves::Alternating => {
            let all = of_class.concat();
            [0, 1].map(|first| all.iter().copied().skip(first).step_by(2).collect())
        }
    })
}
