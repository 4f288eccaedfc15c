//! IDX: MNIST, Fashion-MNIST and others in their layout; raw or gzip. Header: 0, 0, 8 (unsigned bytes), number of
//! dimensions, each dimension as a big-endian u32; then the bytes, to the end of the file.

use super::files::{Files, is_gzip, most_inflated};
use super::split::Part;
use super::{Bytes, Dataset, Found, ImageShape, PixelOrder, Split};
use crate::error::{Error, Result};
use flate2::read::MultiGzDecoder;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

pub(super) const STEMS: [&str; 4] =
    ["train-images?idx3-ubyte", "train-labels?idx1-ubyte", "t10k-images?idx3-ubyte", "t10k-labels?idx1-ubyte"];

/// File names of a stem, raw first: it is mapped and costs nothing where both were left.
pub(super) fn names(stem: &str) -> Vec<String> {
    let name = |mark, end| format!("{}{end}", stem.replace('?', mark));
    vec![name("-", ""), name(".", ""), name("-", ".gz"), name(".", ".gz")]
}

pub(super) fn read(source: &Path, files: &Files) -> Result<Dataset> {
    let [train, test] = [[STEMS[0], STEMS[1]], [STEMS[2], STEMS[3]]].map(|[images, labels]| {
        let (images, labels) = (find(files, images)?, find(files, labels)?);
        let path = files.path(&images);
        let (bytes, offset, [count, h, w]) = array::<3>(&path, files.bytes(&images)?)?;
        let labels_path = files.path(&labels);
        let (label_bytes, label_offset, [labelled]) = array::<1>(&labels_path, files.bytes(&labels)?)?;
        if labelled != count {
            let what = format!("{labelled} labels for the {count} images of {}", path.display());
            return Err(Error::data(labels_path, what));
        }
        let labels = label_bytes[label_offset..].iter().map(|&l| u32::from(l)).collect();
        let part = Part { bytes, offset, stride: h * w, count, order: PixelOrder::Chw };
        let split = Split::new(&path, ImageShape { c: 1, h, w }, vec![part], labels)?;
        Ok(Found { split, labels: labels_path })
    });
    Dataset::assemble(source, "idx", None, None, train?, test?)
}

fn find(files: &Files, stem: &str) -> Result<String> {
    let names = names(stem);
    names.iter().find(|name| files.has(name)).cloned().ok_or_else(|| {
        Error::data(
            files.path(&names[0]),
            format!("no such file (nor {}): an IDX set needs all four", names[1..].join(", ")),
        )
    })
}

/// (bytes, offset of the data, dimensions) of an array that fills the file exactly; no dimension is zero.
fn array<const D: usize>(path: &Path, bytes: Bytes) -> Result<(Bytes, usize, [usize; D])> {
    let header_len = 4 + 4 * D;
    if !is_gzip(&bytes) {
        let (dims, size) = header::<D>(path, &bytes)?;
        let held = bytes.len() - header_len;
        if held != size {
            let what = format!("{} file: its header claims {size} bytes of data, it holds {held}", more(held > size));
            return Err(Error::data(path, what));
        }
        return Ok((bytes, header_len, dims));
    }
    let broken = |e: std::io::Error| Error::data(path, format!("damaged or truncated gzip file: {e}"));
    let mut stream = MultiGzDecoder::new(&bytes[..]);
    let mut head = Vec::new();
    (&mut stream).take(header_len as u64).read_to_end(&mut head).map_err(broken)?;
    let (dims, size) = header::<D>(path, &head)?;
    if size > most_inflated(bytes.len()) {
        let what = format!("its header claims {size} bytes of data, more than its {} gzip bytes can hold", bytes.len());
        return Err(Error::data(path, what));
    }
    // Grows with what really comes and stops one byte past the claim, so neither a claim nor a bomb fills the memory.
    let mut data = Vec::new();
    stream.take(size as u64 + 1).read_to_end(&mut data).map_err(broken)?;
    if data.len() != size {
        let held = if data.len() > size { "more" } else { &data.len().to_string() };
        let what = format!("{} file: its header claims {size} bytes of data, it holds {held}", more(data.len() > size));
        return Err(Error::data(path, what));
    }
    Ok((Bytes::Owned(Arc::from(data)), 0, dims))
}

fn more(too_long: bool) -> &'static str {
    if too_long { "overlong" } else { "truncated" }
}

fn header<const D: usize>(path: &Path, bytes: &[u8]) -> Result<([usize; D], usize)> {
    let word = |i: usize| {
        let word = bytes.get(4 * i..4 * i + 4).and_then(|w| <[u8; 4]>::try_from(w).ok()).map(u32::from_be_bytes);
        word.ok_or_else(|| {
            Error::data(path, format!("truncated file: {} bytes, no room for an IDX header", bytes.len()))
        })
    };
    let (magic, wanted) = (word(0)?, 0x800 + D as u32);
    if magic != wanted {
        let what =
            format!("not an IDX file of unsigned bytes in {D} dimension(s): wanted {wanted:08x}, got {magic:08x}");
        return Err(Error::data(path, what));
    }
    let mut dims = [0; D];
    for (i, d) in dims.iter_mut().enumerate() {
        *d = word(i + 1)? as usize;
    }
    if dims.contains(&0) {
        return Err(Error::data(path, format!("empty: its header says {dims:?}")));
    }
    let size = dims.iter().try_fold(1usize, |p, &d| p.checked_mul(d));
    size.map(|size| (dims, size))
        .ok_or_else(|| Error::data(path, format!("its header claims {dims:?} bytes: too many")))
}
