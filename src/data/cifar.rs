//! CIFAR's binary files: records of one label byte (CIFAR-100: coarse, then fine) and 3 x 32 x 32 bytes.

use super::files::{Files, Kind};
use super::split::Part;
use super::{Dataset, Found, ImageShape, PixelOrder, Split};
use crate::error::{Error, Result};
use std::path::Path;

/// Shape of CIFAR's images.
pub(super) const SHAPE: ImageShape = ImageShape { c: 3, h: 32, w: 32 };

/// (training files, test file) of CIFAR-10 or CIFAR-100, names ending in `suffix`.
pub(super) fn file_names(kind: Kind, suffix: &str) -> (Vec<String>, String) {
    match kind {
        Kind::Cifar10Bin | Kind::Cifar10Python => {
            ((1..=5).map(|i| format!("data_batch_{i}{suffix}")).collect(), format!("test_batch{suffix}"))
        }
        _ => (vec![format!("train{suffix}")], format!("test{suffix}")),
    }
}

/// (family, classes) of a kind of CIFAR.
pub(super) fn family(kind: Kind) -> (&'static str, usize) {
    match kind {
        Kind::Cifar10Bin | Kind::Cifar10Python => ("cifar10", 10),
        _ => ("cifar100", 100),
    }
}

pub(super) fn read(source: &Path, files: &Files, kind: Kind) -> Result<Dataset> {
    let (family, classes) = family(kind);
    let (train, test) = file_names(kind, ".bin");
    let train = records(files, &train, kind)?;
    let test = records(files, &[test], kind)?;
    Dataset::assemble(source, kind.name(), Some(family), Some(classes), train, test)
}

/// Any whole number of records a file is taken: the format states none.
fn records(files: &Files, names: &[String], kind: Kind) -> Result<Found> {
    let (_, classes) = family(kind);
    let label_bytes = if kind == Kind::Cifar10Bin { 1 } else { 2 };
    let stride = label_bytes + SHAPE.numel();
    let (mut parts, mut labels) = (Vec::new(), Vec::new());
    for name in names {
        let path = files.path(name);
        if !files.has(name) {
            return Err(Error::data(path, format!("no such file: {} needs it", kind.name())));
        }
        let bytes = files.bytes(name)?;
        if bytes.is_empty() || bytes.len() % stride != 0 {
            let what =
                format!("truncated file: {} bytes, wanted a multiple of {stride}, the size of a record", bytes.len());
            return Err(Error::data(path, what));
        }
        let count = bytes.len() / stride;
        for i in 0..count {
            let label = &bytes[i * stride..i * stride + label_bytes];
            let (last, coarse) = (u32::from(label[label_bytes - 1]), label[0]);
            if last as usize >= classes || (label_bytes == 2 && coarse >= 20) {
                let wanted = if label_bytes == 1 { "0 to 9" } else { "0 to 19 and 0 to 99" };
                return Err(Error::data(path, format!("label {label:?} of image {i}: wanted {wanted}")));
            }
            labels.push(last);
        }
        parts.push(Part { bytes, offset: label_bytes, stride, count, order: PixelOrder::Chw });
    }
    let path = files.path(&names[0]);
    Ok(Found { split: Split::new(&path, SHAPE, parts, labels)?, labels: path })
}
