//! A network and its densities by options, without a configuration.

use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::models;
use crate::sparsity::{Density, Draw, Mask, Method, Pattern, Ratio, draw_patterns};

/// Which network, for which images, how sparse.
#[derive(Clone, Debug, clap::Args)]
pub struct NetworkArgs {
    /// Network: resnetN (N = 6D+2) or vgg11 to vgg19 for small images; resnet18, 34, 50, 101, 152, wrn50-2 or wrn101-2; or
    /// a file that ends in .toml: one of your own
    #[arg(long, default_value = "resnet20")]
    pub model: String,
    /// Channels of the first segment of a resnetN for small images (the paper's ResNet-A-B: B) [default: 16]
    #[arg(long)]
    pub width: Option<usize>,
    /// Number of classes [default: 10 for small images, else 1000]
    #[arg(long)]
    pub classes: Option<usize>,
    /// Channels of an input image [default: 3]
    #[arg(long)]
    pub channels: Option<usize>,
    /// Rows and columns of an input image [default: 32 for small images, else 224]
    #[arg(long)]
    pub image_size: Option<usize>,
    /// How layers share the density: dense, uniform, uniform-plus, er, erk or erk-plus
    #[arg(long, default_value = "erk")]
    pub method: String,
    /// Power scale of erk and erk-plus, 0 (uniform) to 8 [default: 1]
    #[arg(long, value_name = "POWER", allow_hyphen_values = true)]
    pub erk_power: Option<f64>,
    /// Density of the last layer, of erk-plus [default: 1]
    #[arg(long, value_name = "DENSITY", allow_hyphen_values = true)]
    pub last_density: Option<f64>,
    /// Share of the maskable weights that is pruned, in [0, 1); this or --density
    #[arg(long, allow_hyphen_values = true)]
    pub sparsity: Option<f64>,
    /// Share of the maskable weights that is kept, in (0, 1]; this or --sparsity
    #[arg(long, allow_hyphen_values = true)]
    pub density: Option<f64>,
    /// Mask seed
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// How positions are drawn: exact or bernoulli
    #[arg(long, default_value = "exact")]
    pub mask_draw: String,
    /// What masks are made of: unstructured, or block:RxC, blocks of R output x C input channels; on a GPU
    /// pruned blocks are skipped if R and C are multiples of 16
    #[arg(long, default_value = "unstructured")]
    pub pattern: String,
}

/// What the options say, defaults filled in.
pub(super) struct Network {
    pub model: String,
    /// `None` for networks that have one width only.
    pub width: Option<usize>,
    pub channels: usize,
    pub image_size: usize,
    pub classes: usize,
    pub method: Method,
    pub ratio: Ratio,
    pub density: Density,
    pub draw: Draw,
    pub pattern: Pattern,
    pub seed: u64,
    pub graph: Graph,
}

impl NetworkArgs {
    /// The same network without masks.
    pub(super) fn dense(&self) -> Self {
        let method = "dense".into();
        NetworkArgs { method, erk_power: None, last_density: None, sparsity: None, density: None, ..self.clone() }
    }

    pub(super) fn resolve(&self) -> Result<Network> {
        let (method, draw): (Method, Draw) = (self.method.parse()?, self.mask_draw.parse()?);
        let pattern: Pattern = self.pattern.parse()?;
        pattern.check(draw)?;
        let density = density(method, self.density, self.sparsity)?;
        let ratio = self.ratio(method)?;
        let named = if models::is_file(&self.model) { None } else { Some(models::parse(&self.model)?) };
        let model = named.map_or_else(|| self.model.clone(), |network| network.to_string());
        let default = models::default_image(&self.model)?;
        let channels = self.channels.unwrap_or(default.0);
        let image_size = self.image_size.unwrap_or(default.1);
        let classes = self.classes.unwrap_or(default.2);
        let graph = models::by_name(&self.model, self.width, channels, classes, image_size)?;
        let width = self.width.or(named.and_then(models::Network::standard_width));
        let seed = self.seed;
        Ok(Network { model, width, channels, image_size, classes, method, ratio, density, draw, pattern, seed, graph })
    }
}

impl NetworkArgs {
    /// The method with its options.
    fn ratio(&self, method: Method) -> Result<Ratio> {
        let power = self.erk_power.unwrap_or(1.0);
        if !(0.0..=Ratio::MAX_POWER).contains(&power) {
            return Err(Error::Usage(format!(
                "--erk-power: wanted a number from 0 to {}, got {power}",
                Ratio::MAX_POWER
            )));
        }
        let has = |methods: &[Method]| methods.contains(&method);
        for (flag, given, methods) in [
            ("--erk-power", self.erk_power.is_some(), &[Method::Erk, Method::ErkPlus][..]),
            ("--last-density", self.last_density.is_some(), &[Method::ErkPlus]),
        ] {
            if given && !has(methods) {
                return Err(Error::Usage(format!("{flag}: method {method} has no such option: leave it out")));
            }
        }
        Ok(match method {
            Method::Erk => Ratio::Erk { power },
            Method::ErkPlus => Ratio::ErkPlus { power, last: Density::from_density(self.last_density.unwrap_or(1.0))? },
            other => Ratio::try_from(other)?,
        })
    }
}

impl Network {
    pub(super) fn masks(&self) -> Result<Vec<Mask>> {
        draw_patterns(&self.graph.maskable(), &self.ratio, self.density, self.pattern, self.draw, self.seed)
    }

    /// Two lines: the network and its images, how sparse it is.
    pub(super) fn describe(&self) -> String {
        let size = self.image_size;
        let width = self.width.map(|w| format!(", width {w}")).unwrap_or_default();
        let draw = match self.draw {
            Draw::Exact => "exact counts".to_string(),
            Draw::Bernoulli => format!("Bernoulli draw of mask seed {}", self.seed),
        };
        let blocks = self.pattern.block().map(|_| format!(", {}", self.pattern)).unwrap_or_default();
        let (model, channels, classes, method) = (&self.model, self.channels, self.classes, self.method);
        format!(
            "{model}{width}, on {channels}x{size}x{size} images of {classes} classes\n{method}, density {}, {draw}{blocks}\n",
            self.density.value()
        )
    }
}

fn density(method: Method, density: Option<f64>, sparsity: Option<f64>) -> Result<Density> {
    let given = match (density, sparsity) {
        (Some(_), Some(_)) => {
            return Err(Error::Usage("--density and --sparsity say the same thing twice: give one of them".into()));
        }
        (Some(density), None) => Density::from_density(density)?,
        (None, Some(sparsity)) => Density::from_sparsity(sparsity)?,
        (None, None) if method == Method::Dense => Density::ONE,
        (None, None) => {
            return Err(Error::Usage(format!(
                "method {method} needs --sparsity in [0, 1) or --density in (0, 1], such as --sparsity 0.9"
            )));
        }
    };
    if method == Method::Dense && given != Density::ONE {
        return Err(Error::Usage(format!(
            "method dense keeps every weight, got density {given}: leave --density and --sparsity out, or choose \
             --method uniform or erk"
        )));
    }
    Ok(given)
}
