//! The images inside the binary: an .npz, so that the same reader decodes it. Licence: `assets/LICENSE-fashion-mnist`.

use super::{BUILTIN, Bytes, Dataset, npz};
use crate::error::Result;
use std::path::Path;

static NPZ: &[u8] = include_bytes!("../../assets/fashion-mnist-10k.npz");

pub(super) fn open() -> Result<Dataset> {
    npz::read(Path::new(BUILTIN), Bytes::Static(NPZ))
}
