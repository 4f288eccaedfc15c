//! Ways to share a density among layers: their names ([`Method`]), and with their options the formulas ([`Ratio`]).

use super::{Density, Maskable, Role, by_name, custom, name_of};
use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// How layers share the density, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// No mask at all.
    Dense,
    /// The same density in every layer (paper section 3.1).
    Uniform,
    /// Uniform with the first layer dense and the last one at a fifth or more (paper section 3.1; Gale et al. 2019).
    UniformPlus,
    /// Erdos-Renyi: the fewer neurons a layer joins, the denser it is (paper section 3.1; Mocanu et al. 2018).
    Er,
    /// Erdos-Renyi-Kernel: the same with the kernel's sides counted in (paper section 3.1; Evci et al. 2020).
    Erk,
    /// ERK with the last layer's density chosen (paper section 3.1).
    ErkPlus,
    /// The layers' shares of the weights of highest |weight x gradient| on a batch (paper section 3.1; Lee et al. 2019).
    Snip,
    /// The layers' shares of the weights that gradient flow needs most (paper section 3.1; Wang et al. 2020).
    Grasp,
    /// The layers' shares of the largest initial weights of the whole network (option of the paper's code).
    GlobalMagnitude,
    /// Densities given layer by layer.
    Custom,
    /// The masks of a file.
    File,
}

impl Method {
    /// Every method with its name in configurations.
    pub const ALL: [(&'static str, Method); 11] = [
        ("dense", Method::Dense),
        ("uniform", Method::Uniform),
        ("uniform-plus", Method::UniformPlus),
        ("er", Method::Er),
        ("erk", Method::Erk),
        ("erk-plus", Method::ErkPlus),
        ("snip", Method::Snip),
        ("grasp", Method::Grasp),
        ("global-magnitude", Method::GlobalMagnitude),
        ("custom", Method::Custom),
        ("file", Method::File),
    ];

    /// Whether it ranks the weights of the network at its start: the ratio is there when [`super::top_scores`] is.
    pub fn is_scored(self) -> bool {
        matches!(self, Method::Snip | Method::Grasp | Method::GlobalMagnitude)
    }
}

impl FromStr for Method {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        by_name("method", &Method::ALL, name)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(name_of(&Method::ALL, *self))
    }
}

/// What layer densities are computed from.
///
/// Below, D is the overall density, N the maskable weights, s a layer's shape, n its size. A formula's density is epsilon
/// times a score, with one epsilon for all layers that meets the budget; layers it would lift above 1 are dense and the
/// others share the rest (paper section 3.1). Pinned layers keep what they are given, and the others share D N less that.
#[derive(Clone, Debug, PartialEq)]
pub enum Ratio {
    /// All weights, whatever D is.
    Dense,
    /// Score 1: D everywhere.
    Uniform,
    /// Score 1; pinned: layers of [`Role::First`] at 1, of [`Role::Last`] at D or 0.2, whichever is more. (The paper's code
    /// misses its budget by some per mille here; this meets it.)
    UniformPlus,
    /// Score (s0 + s1) / (s0 s1). A vector scores 1.
    Er,
    /// Score (sum(s) / n)^power.
    Erk {
        /// 0 (uniform) to [`Ratio::MAX_POWER`]; the paper's is 1.
        power: f64,
    },
    /// The same; pinned: layers of [`Role::Last`].
    ErkPlus {
        /// As of [`Ratio::Erk`].
        power: f64,
        /// Density of the last layer; 1 in the paper's runs.
        last: Density,
    },
    /// Pinned: what the map names.
    Custom {
        /// (pattern, density). A pattern is a layer's name (without ".weight"), or a name in which each `*` stands for any
        /// characters, or `@first` or `@last` ([`Role`]). A layer has the density of its name, else of its role, else of a
        /// pattern with `*`.
        layers: Vec<(String, Density)>,
        /// Of the layers that no pattern names.
        rest: Rest,
    },
    /// Weights that each layer keeps, such as a score left it: 1 to its size, together [`Density::budget`].
    Counts(Vec<u64>),
}

/// How layers that [`Ratio::Custom`] does not name share the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rest {
    /// As [`Ratio::Uniform`].
    #[default]
    Uniform,
    /// As [`Ratio::Er`].
    Er,
    /// As [`Ratio::ERK`].
    Erk,
}

impl Rest {
    /// Every rest with its name in configurations.
    pub const ALL: [(&'static str, Rest); 3] = [("uniform", Rest::Uniform), ("er", Rest::Er), ("erk", Rest::Erk)];
}

impl FromStr for Rest {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        by_name("rest", &Rest::ALL, name)
    }
}

impl fmt::Display for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(name_of(&Rest::ALL, *self))
    }
}

/// The ratio of a method that needs neither data nor options: power 1, the last layer of ERK+ dense.
impl TryFrom<Method> for Ratio {
    type Error = Error;
    fn try_from(method: Method) -> Result<Self> {
        Ok(match method {
            Method::Dense => Ratio::Dense,
            Method::Uniform => Ratio::Uniform,
            Method::UniformPlus => Ratio::UniformPlus,
            Method::Er => Ratio::Er,
            Method::Erk => Ratio::ERK,
            Method::ErkPlus => Ratio::ErkPlus { power: 1.0, last: Density::ONE },
            Method::Snip | Method::Grasp | Method::GlobalMagnitude | Method::Custom | Method::File => {
                let needy = |m: Method| m.is_scored() || matches!(m, Method::Custom | Method::File);
                let free: Vec<_> = Method::ALL.iter().filter(|(_, m)| !needy(*m)).map(|(name, _)| *name).collect();
                let needs = match method {
                    Method::Custom => "a density for each layer",
                    Method::File => "masks",
                    _ => "the network's weights and images",
                };
                return Err(Error::Usage(format!(
                    "method {method} is not available here: it needs {needs}; choose one of {}",
                    free.join(", ")
                )));
            }
        })
    }
}

/// A ratio applied to layers: a weight each, to which an open layer's share is proportional, and the pinned densities.
pub(super) struct Formula {
    pub weights: Vec<u64>,
    pub pins: Vec<Option<Density>>,
}

impl Ratio {
    /// ERK as in the paper: power 1.
    pub const ERK: Ratio = Ratio::Erk { power: 1.0 };

    /// Largest power scale of ERK.
    pub const MAX_POWER: f64 = 8.0;

    /// For messages.
    pub(super) fn name(&self) -> String {
        let method = match self {
            Ratio::Dense => Method::Dense,
            Ratio::Uniform => Method::Uniform,
            Ratio::UniformPlus => Method::UniformPlus,
            Ratio::Er => Method::Er,
            Ratio::Erk { .. } => Method::Erk,
            Ratio::ErkPlus { .. } => Method::ErkPlus,
            Ratio::Custom { .. } => Method::Custom,
            Ratio::Counts(_) => return "given counts".into(),
        };
        format!("method {method}")
    }

    pub(super) fn formula(&self, layers: &[Maskable], sizes: &[u64], density: Density) -> Result<Formula> {
        let weights = match self {
            Ratio::Er => er(layers),
            Ratio::Erk { power } | Ratio::ErkPlus { power, .. } => erk(layers, sizes, *power)?,
            Ratio::Custom { rest: Rest::Er, .. } => er(layers),
            Ratio::Custom { rest: Rest::Erk, .. } => erk(layers, sizes, 1.0)?,
            Ratio::Counts(counts) => given(layers, sizes, counts, density)?,
            Ratio::Dense | Ratio::Uniform | Ratio::UniformPlus | Ratio::Custom { rest: Rest::Uniform, .. } => {
                sizes.to_vec()
            }
        };
        let pins = match self {
            Ratio::UniformPlus => {
                let last = density.max(Density::FIFTH);
                let pins = self.by_role(layers, &[(Role::First, Density::ONE), (Role::Last, last)])?;
                if pins.iter().all(Option::is_some) {
                    return Err(Error::Usage(format!(
                        "{} gives first and last layers densities of their own, and this network has no layer between \
                         them to meet the budget; choose another method",
                        self.name()
                    )));
                }
                pins
            }
            Ratio::ErkPlus { last, .. } => self.by_role(layers, &[(Role::Last, *last)])?,
            Ratio::Custom { layers: map, .. } => custom::pins(layers, map)?,
            _ => vec![None; layers.len()],
        };
        Ok(Formula { weights, pins })
    }

    fn by_role(&self, layers: &[Maskable], pins: &[(Role, Density)]) -> Result<Vec<Option<Density>>> {
        for (role, _) in pins {
            if !layers.iter().any(|l| l.role == *role) {
                return Err(Error::Usage(format!(
                    "{} gives the {role} layer a density of its own, but no layer of this network {}; choose another method",
                    self.name(),
                    role.meaning(),
                )));
            }
        }
        Ok(layers.iter().map(|l| pins.iter().find(|(role, _)| *role == l.role).map(|&(_, pin)| pin)).collect())
    }
}

/// Score times size: the kernel times (s0 + s1), whole.
fn er(layers: &[Maskable]) -> Vec<u64> {
    let weight = |l: &Maskable| match *l.shape {
        [out, inputs, ref kernel @ ..] => kernel.iter().product::<usize>() * (out + inputs),
        _ => l.size(),
    };
    layers.iter().map(|l| weight(l) as u64).collect()
}

/// Score times size: whole for powers 1 and 0; else scaled so that all sum to 2^48, which leaves five bits for what
/// `powf` may differ in from one machine to another.
fn erk(layers: &[Maskable], sizes: &[u64], power: f64) -> Result<Vec<u64>> {
    if !(0.0..=Ratio::MAX_POWER).contains(&power) {
        return Err(Error::Usage(format!("power scale of ERK: wanted 0 to {}, got {power}", Ratio::MAX_POWER)));
    }
    let sums = || layers.iter().map(|l| l.shape.iter().map(|&side| side as u64).sum::<u64>());
    if power == 1.0 {
        return Ok(sums().collect());
    }
    if power == 0.0 {
        return Ok(sizes.to_vec());
    }
    let scores = sums().zip(sizes).map(|(sum, &size)| size as f64 * (sum as f64 / size as f64).powf(power));
    let scores: Vec<f64> = scores.collect();
    let scale = 2f64.powi(48) / scores.iter().sum::<f64>();
    Ok(scores.into_iter().map(|score| ((score * scale).round() as u64).max(1)).collect())
}

/// Counts as weights: the rule of [`super::densities`] then gives each layer its count.
fn given(layers: &[Maskable], sizes: &[u64], counts: &[u64], density: Density) -> Result<Vec<u64>> {
    if counts.len() != layers.len() {
        return Err(Error::Usage(format!(
            "counts: wanted one for each of {} layers, got {}",
            layers.len(),
            counts.len()
        )));
    }
    for ((layer, &size), &count) in layers.iter().zip(sizes).zip(counts) {
        let (name, shape) = (&layer.name, &layer.shape);
        if count == 0 {
            return Err(Error::Usage(format!(
                "layer {name} {shape:?} would keep none of its {size} weights: at an overall density of {density} all of its \
                 scores are below those of other layers; use a higher density, more samples, or another method"
            )));
        }
        if count > size {
            return Err(Error::Usage(format!("layer {name} {shape:?}: wanted 1 to {size} weights kept, got {count}")));
        }
    }
    let (sum, budget) = (counts.iter().sum::<u64>(), density.budget(sizes.iter().sum()));
    if sum != budget {
        return Err(Error::Usage(format!(
            "counts: the layers keep {sum} weights, but density {density} is {budget}; score with the same density"
        )));
    }
    Ok(counts.to_vec())
}
