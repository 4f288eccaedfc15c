//! A configuration by options, as the subcommands that train or prepare training have it.

use crate::config::{self, Overrides, Resolved};
use crate::error::Result;
use std::path::PathBuf;

/// Recipe, file and settings, each over the one before.
#[derive(clap::Args)]
pub(super) struct Configured {
    /// Built-in recipe to start from; sparse-engine recipes lists them [default: fashion-mnist-resnet20]
    #[arg(long, value_name = "NAME")]
    recipe: Option<String>,
    /// TOML file over the recipe; RUN/config.toml repeats a run
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One key of the configuration, such as sparsity=0.95 or schedule.kind=cosine; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Data set: a file or a folder (IDX, CIFAR-10, CIFAR-100, .npz); its kind is recognised [default: the recipe's]
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// What masks are made of: unstructured, or block:RxC, blocks of R output x C input channels; on a GPU
    /// pruned blocks are skipped if R and C are multiples of 16 [default: the recipe's]
    #[arg(long, value_name = "PATTERN")]
    pattern: Option<String>,
    /// Initial weights wider by 1/sqrt(density) of the network: init_scale=density
    #[arg(long, conflicts_with = "scale_fan")]
    scaled: bool,
    /// Initial weights of masked convolutions wider by 1/sqrt(density) of each: init_scale=layer-density
    #[arg(long)]
    scale_fan: bool,
    /// Epochs; milestones and warm-up scale with them [default: the recipe's]
    #[arg(long, value_name = "N")]
    epochs: Option<u64>,
    /// Seed of initial values, masks and data order [default: the recipe's]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl Configured {
    /// # Errors
    /// All faults, one a line.
    pub(super) fn resolve(&self) -> Result<Resolved> {
        let mut set = self.set.clone();
        set.extend(self.scaled.then(|| "init_scale=density".into()));
        set.extend(self.scale_fan.then(|| "init_scale=layer-density".into()));
        let overrides = Overrides {
            set,
            data: self.data.clone(),
            pattern: self.pattern.clone(),
            epochs: self.epochs,
            seed: self.seed,
        };
        let mut resolved = config::resolve(self.recipe.as_deref(), self.config.as_deref(), &overrides)?;
        // A run is evaluated and resumed from any folder.
        let absolute = |path: &mut String| {
            if let Ok(whole) = std::path::absolute(&*path) {
                *path = whole.to_string_lossy().into_owned();
            }
        };
        let config = &mut resolved.config;
        if !config.data.starts_with("builtin:") {
            absolute(&mut config.data);
        }
        [&mut config.mask, &mut config.init].into_iter().flatten().for_each(absolute);
        Ok(resolved)
    }

    /// The options that were given.
    pub(super) fn given(&self) -> Vec<&'static str> {
        let given = [
            ("--recipe", self.recipe.is_some()),
            ("--config", self.config.is_some()),
            ("--set", !self.set.is_empty()),
            ("--data", self.data.is_some()),
            ("--pattern", self.pattern.is_some()),
            ("--scaled", self.scaled),
            ("--scale-fan", self.scale_fan),
            ("--epochs", self.epochs.is_some()),
            ("--seed", self.seed.is_some()),
        ];
        given.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect()
    }
}
