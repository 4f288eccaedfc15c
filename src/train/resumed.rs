//! What a run goes on from.

use super::Options;
use super::setup::Setup;
use crate::checkpoint::{Checkpoint, NetState};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::report::RunDir;
use crate::sparsity::Method;
use std::path::Path;

/// The checkpoint that a run goes on from.
pub(super) fn resumed(setup: &Setup, options: &Options) -> Result<Option<Checkpoint>> {
    options.resume.as_ref().map(|run| load(setup, &RunDir::at(run).last())).transpose()
}

/// The state whose masks a run keeps that goes on: where they come from scores or a file, which are not asked again.
pub(super) fn saved_masks(config: &Config, options: &Options) -> Result<Option<NetState>> {
    let run = options.resume.as_ref().filter(|_| config.method.is_scored() || config.method == Method::File);
    run.map(|run| Ok(Checkpoint::load(&RunDir::at(run).last())?.net)).transpose()
}

/// A checkpoint of this very run.
pub(super) fn load(setup: &Setup, path: &Path) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::load(path)?;
    let meta = &checkpoint.meta;
    if meta.data.checksum != setup.data.checksum {
        let what = format!("it was trained on other images than {} holds now (checksums differ)", setup.data.source);
        return Err(Error::data(path, what));
    }
    if let Some(difference) = meta.config.differences(&setup.config)?.first() {
        return Err(Error::data(path, format!("it belongs to another configuration: {difference}")));
    }
    Ok(checkpoint)
}
