//! SVHN's cropped digits (format 2): train_32x32.mat and test_32x32.mat, each with X, uint8 of 32 x 32 x 3 x N (rows,
//! columns, channels, images; rows vary fastest), and y, N labels of 1 to 10, where 10 is the digit 0.

use super::cifar::SHAPE;
use super::files::{Files, Kind, map};
use super::split::Part;
use super::{Bytes, Dataset, Found, PixelOrder, Split, mat};
use crate::error::{Error, Result};
use std::path::Path;

/// Training file, test file.
pub(super) const FILES: [&str; 2] = ["train_32x32.mat", "test_32x32.mat"];

pub(super) fn read(source: &Path, files: &Files) -> Result<Dataset> {
    let [train, test] = FILES.map(|name| {
        let path = files.path(name);
        if !files.has(name) {
            let what =
                format!("no such file: {} needs it (to evaluate, one .mat file can be named)", Kind::Svhn.name());
            return Err(Error::data(path, what));
        }
        images(&path, files.bytes(name)?)
    });
    Dataset::assemble(source, Kind::Svhn.name(), Some("svhn"), Some(10), train?, test?)
}

/// The images of one file, where it is a .mat file.
pub(super) fn single(path: &Path) -> Result<Option<Split>> {
    let bytes = map(path)?;
    if !mat::is_mat(&bytes) {
        return Ok(None);
    }
    images(path, bytes).map(|found| Some(found.split))
}

fn images(path: &Path, file: Bytes) -> Result<Found> {
    let fault = |what: String| Error::data(path, what);
    let x = mat::variable(&file, "X").map_err(fault)?;
    let y = mat::variable(&file, "y").map_err(fault)?;
    // MATLAB drops a last dimension of 1.
    let count = match x.dims.as_slice() {
        [32, 32, 3] => 1,
        [32, 32, 3, n] if *n > 0 => *n,
        other => return Err(fault(format!("X is {other:?}: wanted [32, 32, 3, N] with N of at least 1"))),
    };
    if y.dims != [count, 1] && y.dims != [1, count] {
        return Err(fault(format!("y is {:?} for {count} images: wanted [{count}, 1]", y.dims)));
    }
    let label = |(i, label): (usize, Option<u32>)| match label {
        Some(10) => Ok(0),
        Some(label @ 1..=9) => Ok(label),
        Some(label) => Err(fault(format!("label {label} of image {i}: wanted 1 to 10 (10 is the digit 0)"))),
        None => Err(fault(format!("label of image {i} is not a whole number of 1 to 10"))),
    };
    let labels = y.integers().enumerate().map(label).collect::<Result<Vec<u32>>>()?;
    let mut bytes = x.into_bytes().map_err(|what| fault(format!("X: {what}")))?;
    for plane in bytes.chunks_exact_mut(SHAPE.h * SHAPE.w) {
        for row in 0..SHAPE.h {
            for column in 0..row {
                plane.swap(row * SHAPE.w + column, column * SHAPE.w + row);
            }
        }
    }
    let part =
        Part { bytes: Bytes::Owned(bytes.into()), offset: 0, stride: SHAPE.numel(), count, order: PixelOrder::Chw };
    Ok(Found { split: Split::new(path, SHAPE, vec![part], labels)?, labels: path.into() })
}
