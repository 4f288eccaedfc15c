//! A checkpoint as a file. Whatever the bytes, reading ends in a checkpoint or in an error: every length is checked
//! against the file before anything is allocated for it.

use super::{Checkpoint, Meta, NetState, NormState, ParamState, Progress};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::report::{DataInfo, Engine, files};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::Path;

/// Checkpoints of any version.
pub(super) const FORMATS: &str = "sparse-engine checkpoint ";
/// Version of the file.
const FORMAT: &str = "sparse-engine checkpoint 1";
/// What the checksum covers besides the tensors, in this order.
const TEXTS: [&str; 4] = ["format", "config", "progress", "layout"];

// Safetensors are little-endian, and so is every machine the engine runs on.
const _: () = assert!(cfg!(target_endian = "little"));

/// `progress` in the header.
#[derive(Serialize, Deserialize)]
struct Rest {
    engine: Engine,
    data: DataInfo,
    progress: Progress,
}

/// `layout` in the header: names and logical shapes in store order.
#[derive(Serialize, Deserialize)]
struct Layout {
    params: Vec<ParamLayout>,
    norms: Vec<NormLayout>,
}

#[derive(Serialize, Deserialize)]
struct ParamLayout {
    name: String,
    shape: Vec<usize>,
    masked: bool,
}

#[derive(Serialize, Deserialize)]
struct NormLayout {
    name: String,
    channels: usize,
}

/// A tensor about to be written.
struct Tensor<'a> {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

impl Checkpoint {
    /// Writes the file at `path`: to a temporary file in the same folder, synced, renamed. On any failure, a full disk
    /// included, the older file stays.
    pub fn save(&self, path: &Path) -> Result<()> {
        let (header, tensors) = self.encode(path)?;
        files::replace(path, "cannot write the checkpoint", |out| write(out, &header, &tensors))
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// It cannot be read, is no checkpoint, is of another version, or is damaged: sizes, positions and a checksum over
    /// everything are compared.
    pub fn load(path: &Path) -> Result<Checkpoint> {
        let fail = || Error::io(path, "cannot read the checkpoint");
        if !std::fs::metadata(path).map_err(fail())?.is_file() {
            return Err(Error::data(path, "wanted a checkpoint file, got something else"));
        }
        let bytes = std::fs::read(path).map_err(fail())?;
        decode(&bytes).map_err(|what| Error::data(path, what))
    }

    /// Header (length not included) and tensors in file order. The header is made here since the safetensors crate keeps
    /// its map in random order, and then equal states would not be equal files.
    fn encode(&self, path: &Path) -> Result<(Vec<u8>, Vec<Tensor<'_>>)> {
        let bad = |what: String| Error::Failed(format!("{}: cannot write the checkpoint: {what}", path.display()));
        let Meta { engine, config, data, progress } = &self.meta;
        check_finite(progress).map_err(bad)?;
        let rest = Rest { engine: engine.clone(), data: data.clone(), progress: *progress };
        let layout = Layout {
            params: self
                .net
                .params
                .iter()
                .map(|p| ParamLayout { name: p.name.clone(), shape: p.shape.clone(), masked: p.kept.is_some() })
                .collect(),
            norms: self.net.norms.iter().map(|n| NormLayout { name: n.name.clone(), channels: n.mean.len() }).collect(),
        };
        let texts = [
            FORMAT.to_string(),
            config.to_toml()?,
            serde_json::to_string(&rest).map_err(|e| bad(e.to_string()))?,
            serde_json::to_string(&layout).map_err(|e| bad(e.to_string()))?,
        ];
        let tensors = self.net.tensors();
        let sum = checksum(texts.each_ref().map(String::as_str), tensors.iter().map(|t| (t.name.as_str(), t.bytes)));

        let mut header = Map::new();
        let mut metadata: Map<String, Value> =
            TEXTS.iter().zip(texts).map(|(key, text)| (key.to_string(), text.into())).collect();
        metadata.insert("sha256".into(), sum.into());
        header.insert("__metadata__".into(), metadata.into());
        let mut offset = 0;
        for t in &tensors {
            let end = offset + t.bytes.len();
            let entry = json!({ "dtype": t.dtype, "shape": t.shape, "data_offsets": [offset, end] });
            if header.insert(t.name.clone(), entry).is_some() {
                return Err(bad(format!("two tensors named {:?}", t.name)));
            }
            offset = end;
        }
        let mut header = Value::from(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' '); // tensors start aligned
        Ok((header, tensors))
    }
}

impl NetState {
    fn tensors(&self) -> Vec<Tensor<'_>> {
        let mut list = Vec::new();
        for p in &self.params {
            let shape = if p.kept.is_some() { vec![p.values.len()] } else { p.shape.clone() };
            let mut add = |kind: &str, dtype, shape: &[usize], bytes| {
                list.push(Tensor { name: format!("{kind}/{}", p.name), dtype, shape: shape.to_vec(), bytes });
            };
            add("values", "F32", &shape, bytemuck::cast_slice(&p.values));
            if let Some(kept) = &p.kept {
                add("index", "U32", &[kept.len()], bytemuck::cast_slice(kept));
            }
            add("momentum", "F32", &shape, bytemuck::cast_slice(&p.momentum));
        }
        for n in &self.norms {
            for (kind, data) in [("running_mean", &n.mean), ("running_var", &n.var)] {
                let (name, bytes) = (format!("{kind}/{}", n.name), bytemuck::cast_slice(data));
                list.push(Tensor { name, dtype: "F32", shape: vec![data.len()], bytes });
            }
        }
        list
    }
}

fn write(out: &mut dyn Write, header: &[u8], tensors: &[Tensor]) -> std::io::Result<()> {
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header)?;
    tensors.iter().try_for_each(|t| out.write_all(t.bytes))
}

/// SHA-256, hex, over each text and each tensor's name and bytes, their lengths before them.
fn checksum<'a>(texts: [&str; 4], tensors: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut sha = Sha256::new();
    let mut add = |bytes: &[u8]| {
        sha.update((bytes.len() as u64).to_le_bytes());
        sha.update(bytes);
    };
    texts.iter().for_each(|t| add(t.as_bytes()));
    for (name, bytes) in tensors {
        add(name.as_bytes());
        add(bytes);
    }
    sha.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

fn check_finite(p: &Progress) -> std::result::Result<(), String> {
    let mut numbers = vec![p.running.loss_sum];
    numbers.extend(p.best.iter().flat_map(|b| [b.score.loss, b.score.accuracy]));
    if numbers.iter().all(|v| v.is_finite()) { Ok(()) } else { Err(format!("a number that is not finite in {p:?}")) }
}

fn decode(bytes: &[u8]) -> std::result::Result<Checkpoint, String> {
    let damaged = |e| format!("not a whole safetensors file: {e}");
    let file = SafeTensors::deserialize(bytes).map_err(damaged)?;
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
    let no_text = HashMap::new();
    let metadata = header.metadata().as_ref().unwrap_or(&no_text);
    let format = metadata.get("format").map_or("", String::as_str);
    if format != FORMAT {
        return Err(format!("wanted the format \"{FORMAT}\", got {:?}", format.chars().take(60).collect::<String>()));
    }
    let mut texts = [""; 4];
    for (text, key) in texts.iter_mut().zip(TEXTS) {
        *text = metadata.get(key).ok_or_else(|| format!("its header lacks {key:?}"))?;
    }
    let layout: Layout = parse("layout", texts[3])?;
    let net = net(&file, &layout)?;
    let tensors = net.tensors();
    let sum = checksum(texts, tensors.iter().map(|t| (t.name.as_str(), t.bytes)));
    if metadata.get("sha256") != Some(&sum) {
        return Err("its checksum does not match: the file is damaged".into());
    }
    drop(tensors);
    let config = Config::from_toml(texts[1], "its configuration").map_err(|e| e.to_string().replace('\n', "; "))?;
    let Rest { engine, data, progress } = parse("progress", texts[2])?;
    check_progress(&config, &data, &progress)?;
    Ok(Checkpoint { net, meta: Meta { engine, config, data, progress } })
}

fn parse<'a, T: Deserialize<'a>>(what: &str, text: &'a str) -> std::result::Result<T, String> {
    serde_json::from_str(text).map_err(|e| format!("its {what} cannot be read: {e}"))
}

fn net(file: &SafeTensors, layout: &Layout) -> std::result::Result<NetState, String> {
    let mut used = HashSet::new();
    let mut tensor = |kind: &str, name: &str, dtype: Dtype, shape: &[usize]| {
        let name = format!("{kind}/{name}");
        let view = file.tensor(&name).map_err(|_| format!("it lacks the tensor {name:?}"))?;
        if view.dtype() != dtype || view.shape() != shape {
            let (got, got_shape) = (view.dtype(), view.shape());
            return Err(format!("{name:?}: wanted {dtype:?} of shape {shape:?}, got {got:?} of shape {got_shape:?}"));
        }
        if !used.insert(name.clone()) {
            return Err(format!("its layout names {name:?} twice"));
        }
        Ok(view.data())
    };
    let mut params = Vec::new();
    for ParamLayout { name, shape, masked } in &layout.params {
        let size = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= u32::MAX as usize);
        let size = size.ok_or_else(|| format!("{name:?}: its shape {shape:?} is beyond 2^32-1 weights"))?;
        let mut stored = shape.clone();
        let mut kept = None;
        if *masked {
            // The index tells how many are kept; the reader has checked it against the file.
            let full = format!("index/{name}");
            let view = file.tensor(&full).map_err(|_| format!("it lacks the tensor {full:?}"))?;
            stored = view.shape().to_vec();
            if stored.len() != 1 {
                return Err(format!("{full:?}: wanted one dimension, got {}", stored.len()));
            }
            let index = words(tensor("index", name, Dtype::U32, &stored)?).map(u32::from_le_bytes).collect::<Vec<_>>();
            let ascending = index.windows(2).all(|w| w[0] < w[1]);
            if !ascending || index.last().is_some_and(|&last| last as usize >= size) {
                return Err(format!("{full:?}: wanted ascending positions below {size}"));
            }
            kept = Some(index.into());
        }
        let mut floats = |kind| Ok::<_, String>(reals(tensor(kind, name, Dtype::F32, &stored)?));
        let (values, momentum) = (floats("values")?, floats("momentum")?);
        params.push(ParamState { name: name.clone(), shape: shape.clone(), kept, values, momentum });
    }
    let mut norms = Vec::new();
    for NormLayout { name, channels } in &layout.norms {
        let mut floats = |kind| Ok::<_, String>(reals(tensor(kind, name, Dtype::F32, &[*channels])?));
        norms.push(NormState { name: name.clone(), mean: floats("running_mean")?, var: floats("running_var")? });
    }
    if used.len() != file.len() {
        return Err(format!("wanted {} tensors, got {}", used.len(), file.len()));
    }
    Ok(NetState { params, norms })
}

fn words(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> + '_ {
    bytes.chunks_exact(4).map(|w| [w[0], w[1], w[2], w[3]])
}

fn reals(bytes: &[u8]) -> Vec<f32> {
    words(bytes).map(f32::from_le_bytes).collect()
}

/// Step, epoch and batch belong together, so that whoever goes on can count with them.
fn check_progress(config: &Config, data: &DataInfo, p: &Progress) -> std::result::Result<(), String> {
    let steps_per_epoch = (data.train as u64).div_ceil(config.batch_size as u64);
    let step = p.epoch.checked_mul(steps_per_epoch).and_then(|s| s.checked_add(p.batch));
    if step != Some(p.step) || p.batch > steps_per_epoch || p.epoch > config.epochs {
        return Err(format!(
            "its progress contradicts itself: step {}, epoch {} of {}, batch {} of {steps_per_epoch}",
            p.step, p.epoch, config.epochs, p.batch
        ));
    }
    check_finite(p)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for `left` bytes.
    struct Disk<'a> {
        to: &'a mut dyn Write,
        left: usize,
    }

    impl Write for Disk<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let n = bytes.len().min(self.left);
            if n == 0 && !bytes.is_empty() {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            self.left -= n;
            self.to.write(&bytes[..n])
        }
        fn flush(&mut self) -> std::io::Result<()> {
            self.to.flush()
        }
    }

    fn checkpoint(step: u64) -> Checkpoint {
        let param = |name: &str, kept: Option<&[u32]>, n: usize| ParamState {
            name: name.into(),
            shape: vec![2, 3],
            kept: kept.map(Into::into),
            values: (0..n).map(|i| i as f32 + step as f32).collect(),
            momentum: vec![-0.5; n],
        };
        let norm = NormState { name: "bn".into(), mean: vec![0.0; 2], var: vec![1.0; 2] };
        let data = DataInfo {
            source: "x".into(),
            kind: "idx".into(),
            checksum: "00".into(),
            image: crate::data::ImageShape { c: 1, h: 8, w: 8 },
            classes: 10,
            train: 128_000,
            val: 0,
            test: 10,
        };
        let config = crate::config::resolve(None, None, &Default::default()).unwrap().config;
        Checkpoint {
            net: NetState { params: vec![param("a", Some(&[1, 4]), 2), param("b", None, 6)], norms: vec![norm] },
            meta: Meta {
                engine: Engine::this(),
                config,
                data,
                progress: Progress { step, batch: step, ..Default::default() },
            },
        }
    }

    #[test]
    fn a_disk_that_fills_up_at_any_byte_keeps_the_older_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last.safetensors");
        checkpoint(1).save(&path).unwrap();
        let new = checkpoint(2);
        let (header, tensors) = new.encode(&path).unwrap();
        let size = std::fs::metadata(&path).unwrap().len() as usize;
        for left in (0..size).step_by(61).chain([7, 8, 9, size - 1]) {
            let full = |out: &mut dyn Write| write(&mut Disk { to: out, left }, &header, &tensors);
            assert!(files::replace(&path, "cannot write the checkpoint", full).is_err(), "{left} of {size}");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file is left");
        }
        assert_eq!(Checkpoint::load(&path).unwrap(), checkpoint(1));
        new.save(&path).unwrap();
        assert_eq!(Checkpoint::load(&path).unwrap(), new);
    }
}
