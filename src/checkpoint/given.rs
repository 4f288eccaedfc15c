//! Masks and weights from files of others, and files of them for others: safetensors, a tensor a parameter under its name.
//! A checkpoint of the engine is read, too.

use super::file::FORMATS;
use super::{Checkpoint, NetState, NormState, ParamState};
use crate::error::{Error, Result};
use crate::graph::{Graph, Norm};
use crate::report::files;
use crate::sparsity::{GivenMask, Mask};
use half::{bf16, f16};
use safetensors::tensor::{Metadata, TensorView};
use safetensors::{Dtype, SafeTensors};
use std::collections::HashSet;
use std::path::Path;

/// Initial values that a file gives.
#[derive(Clone, Debug, PartialEq)]
pub struct GivenWeights {
    /// A parameter each, in graph order: kept positions that are given (`None`: all) and their values.
    params: Vec<(Option<Vec<u32>>, Vec<f32>)>,
    /// Running statistics, if the file has them, in graph order.
    pub norms: Option<Vec<NormState>>,
}

impl GivenWeights {
    /// Values of parameter `param` at `kept` positions, `None`: all. `None` where one of them is not given.
    pub fn values(&self, param: usize, kept: Option<&[u32]>, size: usize) -> Option<Vec<f32>> {
        let (given, values) = &self.params[param];
        match (given, kept) {
            (None, None) => Some(values.clone()),
            (None, Some(kept)) => Some(kept.iter().map(|&i| values[i as usize]).collect()),
            (Some(_), None) if values.len() < size => None,
            (Some(_), None) => Some(values.clone()),
            (Some(given), Some(kept)) => {
                kept.iter().map(|i| given.binary_search(i).ok().map(|at| values[at])).collect()
            }
        }
    }
}

/// Reads masks: zeros and ones of any number type, each tensor under the name of the parameter that it masks; or the masks of
/// a checkpoint. [`given_masks`](crate::sparsity::given_masks) says whether they fit a network.
///
/// # Errors
/// No safetensors file; other numbers.
pub fn read_masks(path: &Path) -> Result<Vec<GivenMask>> {
    let bytes = read(path)?;
    let fault = |what: String| Error::data(path, what);
    if is_checkpoint(&bytes) {
        let masked = Checkpoint::load(path)?.net.params.into_iter();
        let mask = |p: ParamState| Some(GivenMask { name: p.name, shape: p.shape, kept: p.kept?.to_vec() });
        return Ok(masked.filter_map(mask).collect());
    }
    let file = parse(&bytes).map_err(fault)?;
    let mut names: Vec<&str> = file.names();
    names.sort_unstable();
    let mut masks = Vec::new();
    for name in names {
        let view = file.tensor(name).map_err(|e| fault(e.to_string()))?;
        let mut kept = Vec::new();
        for (i, v) in numbers(name, &view).map_err(fault)?.into_iter().enumerate() {
            match v {
                1.0 => kept.push(i as u32),
                0.0 => {}
                _ => return Err(fault(format!("tensor {name:?}: element {i}: a mask has zeros and ones, got {v}"))),
            }
        }
        masks.push(GivenMask { name: name.into(), shape: view.shape().to_vec(), kept });
    }
    if masks.is_empty() {
        return Err(fault(
            "no tensors: wanted a mask of zeros and ones under the name of each parameter to mask".into(),
        ));
    }
    Ok(masks)
}

/// Reads initial values: all parameters of the network under their names, and with them either all running statistics
/// (NORM.running_mean and NORM.running_var) or none, of any number type; or the values of a checkpoint, which start anew:
/// without momentum.
///
/// # Errors
/// No safetensors file; a parameter that is missing or of another shape, a tensor of another name, a number that is not finite.
pub fn read_weights(path: &Path, graph: &Graph) -> Result<GivenWeights> {
    let bytes = read(path)?;
    let fault = |what: String| Error::data(path, what);
    if is_checkpoint(&bytes) {
        return of_state(Checkpoint::load(path)?.net, graph).map_err(fault);
    }
    let file = parse(&bytes).map_err(fault)?;
    let tensor = |name: &str, shape: &[usize], wanted: &str| {
        let view = file.tensor(name).map_err(|_| format!("no tensor {name:?}: wanted {wanted}"))?;
        check_shape(name, &view, shape)?;
        let values: Vec<f32> = numbers(name, &view)?.into_iter().map(|v| v as f32).collect();
        match values.iter().position(|v| !v.is_finite()) {
            Some(i) => Err(format!("tensor {name:?}: element {i} is {}: wanted finite numbers", values[i])),
            None => Ok(values),
        }
    };
    let all = "all parameters of the network";
    let params = graph.params().iter().map(|p| Ok((None, tensor(&p.name, &p.shape, all)?)));
    let params = params.collect::<std::result::Result<Vec<_>, String>>().map_err(fault)?;
    let statistics = |n: &Norm| ["running_mean", "running_var"].map(|what| format!("{}.{what}", n.name));
    let mut known: HashSet<String> = graph.norms().iter().flat_map(statistics).collect();
    let norms = file.names().iter().any(|name| known.contains(*name)).then(|| {
        let all = "running statistics of all batch norms, or of none";
        let norm = |n: &Norm| {
            let [mean, var] = statistics(n).map(|name| tensor(&name, &[n.c as usize], all));
            Ok(NormState { name: n.name.clone(), mean: mean?, var: var? })
        };
        graph.norms().iter().map(norm).collect::<std::result::Result<Vec<_>, String>>()
    });
    let norms = norms.transpose().map_err(fault)?;
    known.extend(graph.params().iter().map(|p| p.name.clone()));
    // PyTorch counts the batches of each batch norm.
    let other = |name: &&str| !known.contains(*name) && !name.ends_with(".num_batches_tracked");
    if let Some(name) = file.names().into_iter().filter(other).min() {
        return Err(fault(format!("tensor {name:?}: the network has no parameter of that name")));
    }
    Ok(GivenWeights { params, norms })
}

fn of_state(state: NetState, graph: &Graph) -> std::result::Result<GivenWeights, String> {
    let same = state.params.len() == graph.params().len()
        && state.params.iter().zip(graph.params()).all(|(a, b)| a.name == b.name && a.shape == b.shape);
    if !same {
        return Err("a checkpoint of another network".into());
    }
    let params = state.params.into_iter().map(|p| (p.kept.map(|k| k.to_vec()), p.values)).collect();
    Ok(GivenWeights { params, norms: Some(state.norms) })
}

/// Writes the masks of all maskable tensors as U8 zeros and ones.
///
/// # Errors
/// A file that cannot be written.
pub fn write_masks(path: &Path, masks: &[Mask]) -> Result<()> {
    let ones = |m: &Mask| {
        let mut bytes = vec![u8::from(m.kept.is_none()); m.size()];
        m.kept.iter().flat_map(|kept| kept.iter()).for_each(|&i| bytes[i as usize] = 1);
        bytes
    };
    let tensors: Vec<(&str, Dtype, &[usize], Vec<u8>)> =
        masks.iter().map(|m| (m.name.as_str(), Dtype::U8, &m.shape[..], ones(m))).collect();
    write(path, tensors)
}

/// Writes a dense tensor a parameter, F32.
///
/// # Errors
/// A file that cannot be written.
pub fn write_weights(path: &Path, graph: &Graph, values: &[Vec<f32>]) -> Result<()> {
    let bytes = |v: &Vec<f32>| bytemuck::cast_slice(v).to_vec();
    let tensors = graph.params().iter().zip(values);
    write(path, tensors.map(|(p, v)| (p.name.as_str(), Dtype::F32, &p.shape[..], bytes(v))).collect())
}

fn write(path: &Path, tensors: Vec<(&str, Dtype, &[usize], Vec<u8>)>) -> Result<()> {
    let bad = |e: safetensors::SafeTensorError| Error::data(path, format!("cannot be written: {e}"));
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((*name, TensorView::new(*dtype, shape.to_vec(), bytes).map_err(bad)?)));
    let bytes = safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None).map_err(bad)?;
    files::replace(path, "cannot write", |out| out.write_all(&bytes))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let fail = || Error::io(path, "cannot read");
    if !std::fs::metadata(path).map_err(fail())?.is_file() {
        return Err(Error::data(path, "wanted a safetensors file, got something else"));
    }
    std::fs::read(path).map_err(fail())
}

fn is_checkpoint(bytes: &[u8]) -> bool {
    let header = SafeTensors::read_metadata(bytes).ok();
    // Files of others have a format, too: PyTorch's is "pt".
    let format = |h: &Metadata| h.metadata().as_ref()?.get("format").cloned();
    header.and_then(|(_, h)| format(&h)).is_some_and(|format| format.starts_with(FORMATS))
}

fn parse(bytes: &[u8]) -> std::result::Result<SafeTensors<'_>, String> {
    SafeTensors::deserialize(bytes).map_err(|e| format!("not a whole safetensors file: {e}"))
}

fn check_shape(name: &str, view: &TensorView, shape: &[usize]) -> std::result::Result<(), String> {
    if view.shape() == shape {
        return Ok(());
    }
    Err(format!("tensor {name:?}: wanted shape {shape:?}, got {:?}", view.shape()))
}

/// All numbers of a tensor.
fn numbers(name: &str, view: &TensorView) -> std::result::Result<Vec<f64>, String> {
    let bytes = view.data();
    fn all<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes.chunks_exact(N).map(|b| read(b.try_into().expect("a chunk"))).collect()
    }
    Ok(match view.dtype() {
        Dtype::BOOL | Dtype::U8 => all(bytes, |b: [u8; 1]| f64::from(b[0])),
        Dtype::I8 => all(bytes, |b| f64::from(i8::from_le_bytes(b))),
        Dtype::I16 => all(bytes, |b| f64::from(i16::from_le_bytes(b))),
        Dtype::I32 => all(bytes, |b| f64::from(i32::from_le_bytes(b))),
        Dtype::I64 => all(bytes, |b| i64::from_le_bytes(b) as f64),
        Dtype::F16 => all(bytes, |b| f64::from(f16::from_le_bytes(b))),
        Dtype::BF16 => all(bytes, |b| f64::from(bf16::from_le_bytes(b))),
        Dtype::F32 => all(bytes, |b| f64::from(f32::from_le_bytes(b))),
        Dtype::F64 => all(bytes, f64::from_le_bytes),
        other => return Err(format!("tensor {name:?}: numbers of type {other:?} are not read")),
    })
}
