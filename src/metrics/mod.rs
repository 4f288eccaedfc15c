//! What the paper measures (paper sections 5 and 6), as pure functions of slices: no network, no device, no file.
//!
//! Logits are f32, as the network gives them; everything made of them is computed in f64 and summed in a fixed order.
//! [`Logits`] -> [`Classification`] (accuracy, top-5, NLL, [`Calibration`]); [`max_softmax`] -> [`auroc`]; [`gradient_seeds`]
//! -> the network's backward pass -> [`Fgsm::perturb`]; [`GradientNorms`]; [`Flops`].

mod auroc;
mod calibration;
mod classification;
mod epsilon;
mod fgsm;
mod flops;
mod gradient_norm;
mod logits;

pub use auroc::auroc;
pub use calibration::{Calibration, ConfidenceBin, DEFAULT_BINS, MOST_BINS, calibration};
pub use classification::{Classification, nll, top_k};
pub use epsilon::Epsilon;
pub use fgsm::{Fgsm, Perturbed, Space, gradient_seeds};
pub use flops::{Flops, FlopsKeys, LayerFlops, LayerWork, TRAINING_PASSES};
pub use gradient_norm::GradientNorms;
pub use logits::{Logits, max_softmax};
