//! The masks of a run: from its ratio, from scores of its initial weights, from a file, or from the run it goes on with.

use crate::backend::cpu::{CpuBackend, Isa};
use crate::checkpoint::{GivenWeights, NetState, ParamState, read_masks};
use crate::config::{self, Config, ScoreInit};
use crate::data::{Loader, Preprocess, Split};
use crate::error::{Error, Result};
use crate::graph::{Graph, Net, Param};
use crate::memory;
use crate::saliency::{self, Batch, ScoreNet, grasp_samples, snip_samples};
use crate::sparsity::{Mask, Method, Pattern, Positions, draw_patterns, given_masks, scored_masks, top_scores};
use std::path::Path;

/// What scores are taken on.
pub(super) struct Images<'a> {
    pub train: &'a Split,
    pub preprocess: &'a Preprocess,
    pub classes: usize,
    pub threads: usize,
}

/// The masks of `config`, in the order of [`Graph::maskable`]. `saved`: the state of the run that is gone on with; it is asked
/// only where masks follow from more than the configuration.
pub(super) fn of_run(
    config: &Config,
    graph: &Graph,
    images: &Images,
    given: Option<&GivenWeights>,
    saved: Option<&NetState>,
) -> Result<Vec<Mask>> {
    if let Some(ratio) = config.ratio()? {
        let (pattern, draw) = (config.pattern, config.mask_draw);
        return draw_patterns(&graph.maskable(), &ratio, config.target()?, pattern, draw, config.seed.mask);
    }
    if let Some(saved) = saved {
        let layers = graph.maskable();
        let of = |name: &str| saved.params.iter().find(|p| p.name == name);
        return Ok(layers.iter().filter_map(|l| of(&l.name)).map(|p| mask_of(p, config.pattern)).collect());
    }
    if config.method == Method::File {
        let path = config.mask.as_deref().unwrap_or_default();
        return given_masks(&graph.maskable(), &read_masks(Path::new(path))?, config.pattern)
            .map_err(|what| Error::data(path, what));
    }
    let layers = graph.maskable();
    let scores = scores(config, graph, images, &initial(graph, given, config.seed.init)?)?;
    let budget = config.target()?.budget(layers.iter().map(|l| l.size() as u64).sum());
    let kept = top_scores(&layers, &scores, budget)?;
    let positions = config.positions.unwrap_or(Positions::Draw);
    scored_masks(&layers, &kept, positions, config.pattern, config.mask_draw, config.seed.mask)
}

/// The mask of a parameter as a checkpoint holds it.
pub(super) fn mask_of(p: &ParamState, pattern: Pattern) -> Mask {
    let size: usize = p.shape.iter().product();
    Mask {
        name: p.name.clone(),
        shape: p.shape.clone(),
        density: p.kept.as_ref().map_or(1.0, |kept| kept.len() as f64 / size as f64),
        kept: p.kept.clone(),
        block: pattern.block_of(&p.shape, p.kept.as_deref()),
    }
}

/// All parameters, dense, as training will find them.
pub(super) fn initial(graph: &Graph, given: Option<&GivenWeights>, seed: u64) -> Result<Vec<Vec<f32>>> {
    let weights = graph.param_count() as u64;
    memory::check(16 * weights, &format!("{weights} dense initial values"), "make the network smaller")?;
    let values = |(i, p): (usize, &Param)| match given {
        None => Ok(graph.init_values(i, None, seed).into_iter().map(|v| v as f32).collect()),
        Some(given) => given.values(i, None, p.size()).ok_or_else(|| {
            Error::Failed(format!(
                "init: the file has no value for some weights of {}: scores, and files for others, want all of them",
                p.name
            ))
        }),
    };
    graph.params().iter().enumerate().map(values).collect()
}

/// Scores of all maskable weights; the higher, the sooner a weight is kept.
fn scores(config: &Config, graph: &Graph, images: &Images, values: &[Vec<f32>]) -> Result<Vec<Vec<f64>>> {
    if config.method == Method::GlobalMagnitude {
        let maskable = graph.params().iter().zip(values).filter(|(p, _)| p.maskable);
        return Ok(maskable.map(|(_, v)| v.iter().map(|v| f64::from(v.abs())).collect()).collect());
    }
    // Scores are f64 of the values in f32, as they are trained.
    let mut values: Vec<Vec<f64>> = values.iter().map(|v| v.iter().map(|&v| f64::from(v)).collect()).collect();
    if config.score_init == Some(ScoreInit::Xavier) {
        saliency::xavier(graph, &mut values, config.seed.init);
    }
    let augment = Some(config.augment).filter(|_| config.score_augment.unwrap_or(true));
    let (split, preprocess) = (images.train.clone(), images.preprocess.clone());
    let loader = Loader::new(split, 1, preprocess, augment, config.seed.data, 0)?;
    let fault = |key: &str, e: Error| match e {
        Error::Usage(what) => Error::Usage(format!("{key}: {what}")),
        other => other,
    };
    if config.method == Method::Snip {
        let samples = config.score_samples.unwrap_or(config.batch_size);
        let chosen = snip_samples(images.train.len(), samples, config.seed.data);
        let batch = loader.gather(&chosen.map_err(|e| fault("score_samples", e))?, SCORE_STREAM);
        // Masks must not depend on a plan or a device: the default plan, in f32 on the processor.
        let make = |spec| CpuBackend::with_plan(spec, images.threads, Isa::detect(), None);
        let mut net = Net::new(graph, &[], samples, make)?;
        return saliency::snip(&mut net, graph, &values, Batch { images: &batch.images, labels: &batch.labels });
    }
    let labels: Vec<u32> = (0..images.train.len()).map(|i| images.train.label(i)).collect();
    let per_class = config.score_samples_per_class.unwrap_or(25);
    let halves = match config.score_halves {
        Some(config::Halves::Alternate) => saliency::Halves::Alternating,
        _ => saliency::Halves::ByClass,
    };
    let chosen = grasp_samples(&labels, images.classes, per_class, halves, config.seed.data);
    let parts = chosen.map_err(|e| fault("score_samples_per_class", e))?.map(|half| loader.gather(&half, SCORE_STREAM));
    let parts = parts.each_ref().map(|part| Batch { images: &part.images, labels: &part.labels });
    let net = ScoreNet::new(graph, &values, images.threads)?;
    net.grasp(&parts, config.score_temperature.unwrap_or(200.0))
}

/// Crops and flips of the images that scores are taken on; epochs have streams of other names.
const SCORE_STREAM: &str = "score augment";
