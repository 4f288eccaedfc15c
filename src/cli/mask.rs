//! `sparse-engine mask`.

use super::configured::Configured;
use super::format;
use super::table::aligned;
use crate::checkpoint::{write_masks, write_weights};
use crate::error::{Error, Result};
use crate::train::Beginning;
use std::path::PathBuf;

/// Writes the masks and the initial weights that train would begin with, and trains nothing.
///
/// Both are safetensors files with a tensor a parameter under its name: mask.safetensors has zeros and ones (U8) for each
/// weight that can be pruned, init.safetensors the values (F32) of all parameters, pruned ones too.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  sparse-engine mask --set method=snip --out ticket
  sparse-engine train --set method=file --set mask=ticket/mask.safetensors --set init=ticket/init.safetensors")]
pub(super) struct MaskArgs {
    #[command(flatten)]
    configured: Configured,
    /// Folder for the two files; it is made, and no file in it is overwritten
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Worker threads; they change no result [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

pub(super) fn run(args: MaskArgs) -> Result<()> {
    let config = args.configured.resolve()?.config;
    let [masks_path, values_path] = ["mask.safetensors", "init.safetensors"].map(|name| args.out.join(name));
    if let Some(there) = [&masks_path, &values_path].into_iter().find(|path| path.exists()) {
        return Err(Error::Usage(format!("{}: it is there already; choose another --out", there.display())));
    }
    let beginning = Beginning::of(&config, super::threads(args.threads))?;
    let values = beginning.values()?;
    std::fs::create_dir_all(&args.out).map_err(Error::io(&args.out, "cannot make the folder"))?;
    write_masks(&masks_path, &beginning.masks)?;
    write_weights(&values_path, &beginning.graph, &values)?;

    let mut rows = vec![["layer", "shape", "weights", "kept", "density"].map(String::from).to_vec()];
    let (mut size, mut kept) = (0, 0);
    for mask in &beginning.masks {
        let shape = mask.shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        let counts = [mask.size(), mask.nnz()].map(|n| format::count(n as u64));
        let density = format!("{:.6}", mask.nnz() as f64 / mask.size() as f64);
        rows.push(vec![mask.name.clone(), shape, counts[0].clone(), counts[1].clone(), density]);
        size += mask.size();
        kept += mask.nnz();
    }
    let density = format!("{:.6}", kept as f64 / size as f64);
    rows.push(vec!["all".into(), String::new(), format::count(size as u64), format::count(kept as u64), density]);
    let text = aligned(&rows, |column| column < 2);
    super::print(&format!("{text}{}\n{}\n", masks_path.display(), values_path.display()))
}
