//! CIFAR's Python archive, as torchvision leaves it on disk: pickled dictionaries with "data", N x 3072 bytes, and
//! "labels" (CIFAR-100: "fine_labels").

use super::cifar::{SHAPE, family, file_names};
use super::files::{Files, Kind};
use super::pickle::{Data, Pickle};
use super::split::Part;
use super::{Bytes, Dataset, Found, PixelOrder, Split};
use crate::error::{Error, Result};
use std::path::Path;

pub(super) fn read(source: &Path, files: &Files, kind: Kind) -> Result<Dataset> {
    let (family, classes) = family(kind);
    let (train, test) = file_names(kind, "");
    let train = batches(files, &train, kind)?;
    let test = batches(files, &[test], kind)?;
    Dataset::assemble(source, kind.name(), Some(family), Some(classes), train, test)
}

fn batches(files: &Files, names: &[String], kind: Kind) -> Result<Found> {
    let (_, classes) = family(kind);
    let key = if kind == Kind::Cifar10Python { "labels" } else { "fine_labels" };
    let (mut parts, mut labels) = (Vec::new(), Vec::new());
    for name in names {
        let path = files.path(name);
        if !files.has(name) {
            return Err(Error::data(path, format!("no such file: {} needs it", kind.name())));
        }
        let bytes = files.bytes(name)?;
        let fault = |what| Error::data(&path, what);
        let pickle = Pickle::parse(&bytes).map_err(fault)?;
        let array = pickle.array("data").map_err(fault)?;
        let these = pickle.integers(key).map_err(fault)?;
        let ([count, stride], size) = (array.shape, SHAPE.numel());
        if stride != size || count == 0 {
            return Err(fault(format!("\"data\" is {count} x {stride}, wanted N x {size} with N of at least 1")));
        }
        if these.len() != count {
            return Err(fault(format!("{} labels for {count} images", these.len())));
        }
        for (i, &label) in these.iter().enumerate() {
            let inside = u32::try_from(label).ok().filter(|&l| (l as usize) < classes);
            let wrong = || fault(format!("label {label} of image {i}: wanted 0 to {}", classes - 1));
            labels.push(inside.ok_or_else(wrong)?);
        }
        let (bytes, offset) = match array.data {
            Data::At(range) => (bytes.clone(), range.start),
            Data::Decoded(data) => (Bytes::Owned(data.into()), 0),
        };
        let (bytes, offset) = if array.fortran {
            let columns = &bytes[offset..offset + count * stride];
            let rows: Vec<u8> = (0..count).flat_map(|i| columns[i..].iter().step_by(count).copied()).collect();
            (Bytes::Owned(rows.into()), 0)
        } else {
            (bytes, offset)
        };
        parts.push(Part { bytes, offset, stride, count, order: PixelOrder::Chw });
    }
    let path = files.path(&names[0]);
    Ok(Found { split: Split::new(&path, SHAPE, parts, labels)?, labels: path })
}
