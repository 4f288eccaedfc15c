//! How each convolution runs on a GPU. The default is a pure function of geometry, batch size and precision; what a run uses
//! stands in its plan file, so that the same bytes come again on the same device model.

use super::driver::Driver;
use super::ops::conv::{ConvPlan, check_geometry};
use super::ops::operand::Precision;
use super::precision::LossScale;
use super::vendor::{Pass, Product};
use crate::backend::Spec;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Version of the format.
pub const GPU_PLAN_VERSION: u32 = 1;

/// One convolution or linear layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuLayer {
    /// C, H, W, K, R, S, stride, padding.
    pub geometry: [u32; 8],
    /// Stored weights.
    pub weights: usize,
    /// How it runs.
    pub plan: ConvPlan,
}

/// A plan for a network: one layer a convolution, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuPlan {
    /// [`GPU_PLAN_VERSION`].
    pub version: u32,
    /// Device it was made on, for people.
    pub device: String,
    /// What tensors and factors are rounded to.
    pub precision: Precision,
    /// Factor of the loss's gradient in the run that it is of; `None`: as the precision needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
    /// Layers in the order of [`Spec::convs`].
    pub layers: Vec<GpuLayer>,
}

impl GpuPlan {
    /// What `plans` say for the convolutions of `spec`.
    pub(super) fn of(precision: Precision, spec: &Spec, plans: impl Iterator<Item = ConvPlan>, device: &str) -> Self {
        let layers = spec.convs.iter().zip(plans).map(|(c, plan)| {
            let g = c.geom;
            GpuLayer {
                geometry: [g.c, g.h, g.w, g.k, g.r, g.s, g.stride, g.pad],
                weights: spec.params[c.weight.0 as usize].range.len(),
                plan,
            }
        });
        GpuPlan {
            version: GPU_PLAN_VERSION,
            device: device.into(),
            precision,
            loss_scale: None,
            layers: layers.collect(),
        }
    }

    /// The same with every layer sent to a vendor's library, in all three passes.
    pub fn vendor(&self) -> Self {
        let mut twin = self.clone();
        twin.layers.iter_mut().for_each(|l| l.plan = l.plan.vendor());
        twin
    }

    /// For a dense network: what `driver`'s vendor has a way for goes to its libraries, the rest to our kernels by rule. The
    /// rival in benches.
    ///
    /// # Errors
    /// One line: no vendor, or a vendor that takes none of the products, and why.
    pub fn through_vendor<D: Driver>(driver: &D, spec: &Spec, precision: Precision) -> Result<Self> {
        let none = |why: String| Error::Failed(format!("no dense product through a vendor's library: {why}"));
        let vendor = driver.vendor().ok_or_else(|| none(format!("{} has none", driver.describe())))?;
        spec.convs.iter().try_for_each(|conv| check_geometry(&conv.geom))?;
        let mut refused = None;
        let plans = spec.convs.iter().map(|conv| {
            let rule = ConvPlan::new(&conv.geom, spec.batch as u32, precision, false);
            Pass::ALL.into_iter().fold(rule, |plan, pass| {
                let product = Product { pass, geom: conv.geom, images: spec.batch as u32, precision };
                match vendor.prepare(&product) {
                    Ok(_) => plan.with_vendor(pass),
                    Err(why) => {
                        refused.get_or_insert(why);
                        plan
                    }
                }
            })
        });
        let plan = GpuPlan::of(precision, spec, plans, &driver.describe());
        match (plan.vendor_products(), refused) {
            (0, Some(why)) => Err(none(why.to_string())),
            _ => Ok(plan),
        }
    }

    /// Products, three a layer, that a vendor's library makes.
    pub fn vendor_products(&self) -> usize {
        let of = |layer: &GpuLayer| Pass::ALL.into_iter().filter(|&pass| layer.plan.by_vendor(pass)).count();
        self.layers.iter().map(of).sum()
    }

    /// Whether it is for this network: the first difference, else.
    ///
    /// # Errors
    /// One line that names the layer, what the plan has and what the network has.
    pub fn check_spec(&self, spec: &Spec) -> std::result::Result<(), String> {
        let wanted = GpuPlan::of(self.precision, spec, self.layers.iter().map(|l| l.plan), &self.device);
        if self.layers.len() != spec.convs.len() {
            return Err(format!("a plan of {} layers for a network of {}", self.layers.len(), spec.convs.len()));
        }
        for (i, (got, want)) in self.layers.iter().zip(&wanted.layers).enumerate() {
            if (got.geometry, got.weights) != (want.geometry, want.weights) {
                return Err(format!(
                    "layer {i}: the plan is for geometry {:?} with {} weights, the network has {:?} with {}",
                    got.geometry, got.weights, want.geometry, want.weights
                ));
            }
        }
        Ok(())
    }
}
