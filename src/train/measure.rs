//! The metrics of a network on its device, over whole sets of images (paper section 5).

use super::evaluation::{Asked, Inside};
use crate::backend::Backend;
use crate::data::{Batch, ImageSet, Preprocess, class_subset, ood};
use crate::error::{Error, Result};
use crate::graph::Net;
use crate::metrics::{Classification, Fgsm, Logits, Perturbed, Space, auroc, gradient_seeds, max_softmax};
use crate::report::{NpzArray, Numbers, Score, write_npz};
use serde::Serialize;
use std::path::Path;

/// How well in-distribution images are told from others by the largest softmax probability.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OodResult {
    /// What was asked for: a path, or a kind of noise.
    pub source: String,
    /// The set, such as "cifar100-bin /data/cifar-100, test split".
    pub kind: String,
    /// How its images were brought to the network's shape.
    pub rule: String,
    /// Images out of distribution.
    pub n: u64,
    /// Images in distribution that they were compared with: all, or those of some classes.
    pub inside: u64,
    /// Area under the ROC curve, in distribution positive.
    pub auroc: f64,
}

/// Accuracy under attack.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FgsmResult {
    /// As written, such as "8/255".
    pub epsilon: String,
    /// Its unit.
    pub space: Space,
    /// Top-1 accuracy on the perturbed images.
    pub accuracy: f64,
    /// Share of the elements of the images' gradient that are zero: they do not move.
    pub zero_gradient_share: f64,
}

/// All that was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Loss and accuracy as the device computes them.
    pub score: Score,
    /// From the logits.
    pub classification: Classification,
    /// For each set asked for.
    pub ood: Vec<OodResult>,
    /// For each epsilon asked for.
    pub fgsm: Vec<FgsmResult>,
}

/// A network, how its images are normalised, and how they are fed.
pub(super) struct Measuring<'a, B: Backend> {
    pub net: &'a mut Net<B>,
    pub preprocess: &'a Preprocess,
    pub batch: usize,
    pub threads: usize,
    pub classes: usize,
}

impl<B: Backend<Real = f32>> Measuring<'_, B> {
    /// Everything `asked` for. `named`: the images, for messages.
    pub fn run(&mut self, inside: &Inside, asked: &Asked, named: &Path) -> Result<Measured> {
        // What is wrong with them must show before the first pass.
        let outsides =
            asked.ood.iter().map(|source| self.outside(source, inside, asked)).collect::<Result<Vec<_>>>()?;
        let mut logits = Logits::new(self.classes);
        let (mut loss_sum, mut correct, mut from) = (0.0, 0, 0);
        for batch in self.batches(&inside.set)? {
            let batch = batch?;
            let loss = self.net.infer(&batch.images, &batch.labels);
            let indices: Vec<u32> = (from..from + batch.n).map(|i| inside.index(i)).collect();
            logits.push(&self.net.logits(batch.n), &batch.labels, &indices)?;
            loss_sum += loss.loss_sum;
            correct += loss.correct;
            from += batch.n;
        }
        let score = Score::from_sums(loss_sum, correct, from as u64);
        if !score.loss.is_finite() {
            let what = format!("the loss on these images is {}: the network diverged", score.loss);
            return Err(Error::Failed(format!("{}: {what}", named.display())));
        }
        let classification = Classification::of(&logits, asked.ece_bins)?;
        let confidence = max_softmax(logits.data(), self.classes)?;
        let mut saved = Saved::new(&logits, asked.save_logits.as_deref());
        let mut ood = Vec::new();
        for (source, (outside, rows)) in asked.ood.iter().zip(outsides) {
            let positive: Vec<f64> = match &rows {
                None => confidence.clone(),
                Some(rows) => rows.iter().map(|&i| confidence[i as usize]).collect(),
            };
            let others = self.logits(&outside)?;
            let negative = max_softmax(&others, self.classes)?;
            ood.push(OodResult {
                source: source.clone(),
                kind: outside.name().into(),
                rule: outside.rule().into(),
                n: negative.len() as u64,
                inside: positive.len() as u64,
                auroc: auroc(&positive, &negative)?,
            });
            saved.add(format!("ood{}_logits", ood.len() - 1), others);
            saved.rows.extend(rows.map(|rows| (format!("ood{}_inside", ood.len() - 1), rows)));
        }
        let fgsm = self.fgsm(inside, asked, &mut saved)?;
        saved.write(&logits)?;
        Ok(Measured { score, classification, ood, fgsm })
    }

    /// A set out of distribution, and the in-distribution images that it is compared with where those are not all.
    fn outside(&self, source: &str, inside: &Inside, asked: &Asked) -> Result<(ImageSet, Option<Vec<u32>>)> {
        let outside = ood::open(source, &inside.set, asked.ood_seed)?;
        let Some(list) = &asked.inside_classes else { return Ok((outside, None)) };
        let subset = class_subset(&inside.set, &outside, list.file(), self.classes)?;
        let rows = (0..subset.len()).map(|i| subset.position(i) as u32).collect();
        Ok((outside, Some(rows)))
    }

    fn batches(&self, set: &ImageSet) -> Result<impl Iterator<Item = Result<Batch>> + use<B>> {
        set.batches(self.batch, self.preprocess, self.threads)
    }

    /// Logits of images whose labels do not matter.
    fn logits(&mut self, set: &ImageSet) -> Result<Vec<f32>> {
        let mut logits = Vec::with_capacity(set.len() * self.classes);
        for batch in self.batches(set)? {
            let batch = batch?;
            self.net.infer(&batch.images, &vec![0; batch.n]);
            logits.extend(self.net.logits(batch.n));
        }
        Ok(logits)
    }

    /// The fast gradient sign method with each epsilon: true labels, running statistics, plain cross-entropy.
    fn fgsm(&mut self, inside: &Inside, asked: &Asked, saved: &mut Saved) -> Result<Vec<FgsmResult>> {
        if asked.fgsm.is_empty() {
            return Ok(vec![]);
        }
        let shape = inside.set.shape();
        let mut sums = vec![(0u64, 0u64); asked.fgsm.len()];
        let mut attacked = vec![Vec::new(); if saved.path.is_some() { asked.fgsm.len() } else { 0 }];
        for batch in self.batches(&inside.set)? {
            let Batch { n, images, labels } = batch?;
            let mut fault = None;
            let (_, gradient) = self.net.input_gradient(&images, n, |logits| {
                gradient_seeds(logits, self.classes, &labels).unwrap_or_else(|e| {
                    fault = Some(e);
                    vec![0.0; logits.len()]
                })
            });
            if let Some(fault) = fault {
                return Err(fault);
            }
            for (i, (epsilon, (correct, zeros))) in asked.fgsm.iter().zip(&mut sums).enumerate() {
                let Preprocess { mean, std } = self.preprocess;
                let fgsm = Fgsm { epsilon: epsilon.value(), space: asked.fgsm_space, mean, std };
                let Perturbed { images, zero_gradients } = fgsm.perturb(&images, &gradient, shape.h * shape.w)?;
                *correct += self.net.infer(&images, &labels).correct;
                *zeros += zero_gradients;
                if let Some(logits) = attacked.get_mut(i) {
                    logits.extend(self.net.logits(n));
                }
            }
        }
        for (i, logits) in attacked.into_iter().enumerate() {
            saved.add(format!("fgsm{i}_logits"), logits);
        }
        let n = inside.set.len() as f64;
        let result = |(epsilon, (correct, zeros)): (&crate::metrics::Epsilon, (u64, u64))| FgsmResult {
            epsilon: epsilon.to_string(),
            space: asked.fgsm_space,
            accuracy: correct as f64 / n,
            zero_gradient_share: zeros as f64 / (n * shape.numel() as f64),
        };
        Ok(asked.fgsm.iter().zip(sums).map(result).collect())
    }
}

/// What goes into the file of logits.
struct Saved<'a> {
    path: Option<&'a Path>,
    classes: usize,
    logits: Vec<(String, Vec<f32>)>,
    rows: Vec<(String, Vec<u32>)>,
}

impl<'a> Saved<'a> {
    fn new(logits: &Logits, path: Option<&'a Path>) -> Self {
        Saved { path, classes: logits.classes(), logits: vec![], rows: vec![] }
    }

    fn add(&mut self, name: String, logits: Vec<f32>) {
        if self.path.is_some() {
            self.logits.push((name, logits));
        }
    }

    fn write(&self, inside: &Logits) -> Result<()> {
        let Some(path) = self.path else { return Ok(()) };
        let whole = [inside.len(), self.classes];
        let shapes: Vec<[usize; 2]> = self.logits.iter().map(|(_, l)| [l.len() / self.classes, self.classes]).collect();
        let counts: Vec<[usize; 1]> = self.rows.iter().map(|(_, rows)| [rows.len()]).collect();
        let mut arrays = vec![
            NpzArray { name: "logits", shape: &whole, numbers: Numbers::F32(inside.data()) },
            NpzArray { name: "labels", shape: &whole[..1], numbers: Numbers::I64(inside.labels()) },
            NpzArray { name: "indices", shape: &whole[..1], numbers: Numbers::I64(inside.indices()) },
        ];
        for ((name, logits), shape) in self.logits.iter().zip(&shapes) {
            arrays.push(NpzArray { name, shape, numbers: Numbers::F32(logits) });
        }
        for ((name, rows), shape) in self.rows.iter().zip(&counts) {
            arrays.push(NpzArray { name, shape, numbers: Numbers::I64(rows) });
        }
        write_npz(path, &arrays)
    }
}
