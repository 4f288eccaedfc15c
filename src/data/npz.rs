//! numpy's .npz: a zip of .npy files, stored or deflated, here x_train, y_train, x_test and y_test.
//!
//! Images: uint8 in C order. N,H,W is one channel. Of four dimensions the channels are the one that is 1 or 3: the second
//! (N,C,H,W) or the last (N,H,W,C); where both are, or neither is, the file is refused rather than guessed at.
//! Labels: N or N,1 integers of 1 to 8 bytes, signed or not, of either byte order.
//!
//! The rawzip crate finds the members (it allocates nothing; the zip crate reserves by what a header claims).

use super::files::most_inflated;
use super::split::Part;
use super::{Bytes, Dataset, Found, ImageShape, PixelOrder, Split};
use crate::error::{Error, Result};
use flate2::read::DeflateDecoder;
use rawzip::{CompressionMethod, ZipArchive};
use std::io::Read;
use std::path::{Path, PathBuf};

pub(super) fn read(source: &Path, file: Bytes) -> Result<Dataset> {
    let [train, test] = ["train", "test"].map(|name| split(source, &file, name));
    Dataset::assemble(source, "npz", None, None, train?, test?)
}

fn split(source: &Path, file: &Bytes, name: &str) -> Result<Found> {
    let (x, y) = (format!("x_{name}"), format!("y_{name}"));
    let at = |member: &str| -> PathBuf { source.join(member) };
    let fault = |member: &str, what: String| Error::data(at(member), what);

    let images = Npy::read(file, &x).map_err(|what| fault(&x, what))?;
    if images.kind != 'u' || images.item_bytes != 1 {
        let what = format!("numbers of type {}{}: wanted uint8 images", images.kind, images.item_bytes);
        return Err(fault(&x, what));
    }
    let (count, shape, order) = image_shape(&images.shape).map_err(|what| fault(&x, what))?;

    let labels = Npy::read(file, &y).map_err(|what| fault(&y, what))?;
    match labels.shape.as_slice() {
        [n] | [n, 1] if *n == count => {}
        [n] | [n, 1] => return Err(fault(&y, format!("{n} labels for the {count} images of {x}"))),
        other => return Err(fault(&y, format!("shape {other:?}: wanted (N) or (N, 1)"))),
    }
    let labels = labels.integers().map_err(|what| fault(&y, what))?;
    let part = Part { bytes: images.bytes, offset: images.offset, stride: shape.numel(), count, order };
    Ok(Found { split: Split::new(&at(&x), shape, vec![part], labels)?, labels: at(&y) })
}

/// (count, shape, order) of an array of images; no dimension is zero, the product is the array's real size.
fn image_shape(shape: &[usize]) -> std::result::Result<(usize, ImageShape, PixelOrder), String> {
    if shape.contains(&0) {
        return Err(format!("shape {shape:?}: empty"));
    }
    let channels = |c: usize| c == 1 || c == 3;
    match *shape {
        [n, h, w] => Ok((n, ImageShape { c: 1, h, w }, PixelOrder::Chw)),
        [_, a, _, b] if channels(a) && channels(b) => Err(format!(
            "shape {shape:?}: both the second and the last dimension may be the channels; use N,H,W for one"
        )),
        [n, c, h, w] if channels(c) => Ok((n, ImageShape { c, h, w }, PixelOrder::Chw)),
        [n, h, w, c] if channels(c) => Ok((n, ImageShape { c, h, w }, PixelOrder::Hwc)),
        _ => Err(format!("shape {shape:?}: wanted N,H,W or N,H,W,C or N,C,H,W with 1 or 3 channels C")),
    }
}

/// An array whose bytes fill the rest of `bytes` from `offset`, or a range of it.
struct Npy {
    /// 'u', 'i', 'f', ... as in numpy.
    kind: char,
    item_bytes: usize,
    big_endian: bool,
    shape: Vec<usize>,
    bytes: Bytes,
    offset: usize,
    len: usize,
}

impl Npy {
    fn read(file: &Bytes, name: &str) -> std::result::Result<Self, String> {
        let (bytes, from, to) = member(file, &format!("{name}.npy"))?;
        let data = &bytes[from..to];
        let version = match data {
            [0x93, b'N', b'U', b'M', b'P', b'Y', major @ 1..=3, _, ..] => *major,
            _ => return Err("not a .npy file of version 1 to 3".into()),
        };
        let size = if version == 1 { 2 } else { 4 };
        let len = data.get(8..8 + size).ok_or("truncated .npy header")?;
        let len = len.iter().rev().fold(0usize, |v, &b| v << 8 | usize::from(b));
        let start = 8 + size;
        let head = start.checked_add(len).and_then(|end| data.get(start..end)).ok_or("truncated .npy header")?;
        let head = std::str::from_utf8(head).map_err(|_| "the .npy header is not text")?;
        let header = Header::parse(head).ok_or_else(|| {
            let shown: String =
                head.trim_end().chars().take(120).map(|c| if c.is_control() { '?' } else { c }).collect();
            format!("cannot understand the .npy header {shown}")
        })?;
        if header.fortran {
            return Err("stored in Fortran order: wanted C order (numpy.ascontiguousarray)".into());
        }
        let (kind, item_bytes, big_endian) = dtype(&header.descr)
            .ok_or_else(|| format!("numbers of type {:?}: wanted uint8 images and integer labels", header.descr))?;
        let claimed = header.shape.iter().try_fold(item_bytes, |p, &d| p.checked_mul(d));
        let held = data.len() - start - len;
        if claimed != Some(held) {
            let claimed = claimed.map_or("too many".into(), |c| c.to_string());
            return Err(format!("the .npy header claims {claimed} bytes of data, the file holds {held}"));
        }
        let offset = from + start + len;
        Ok(Npy { kind, item_bytes, big_endian, shape: header.shape, bytes, offset, len: held })
    }

    fn integers(&self) -> std::result::Result<Vec<u32>, String> {
        if !matches!(self.kind, 'u' | 'i') {
            return Err(format!("numbers of type {}{}: wanted integer labels", self.kind, self.item_bytes));
        }
        let items = self.bytes[self.offset..self.offset + self.len].chunks_exact(self.item_bytes);
        let number = |(i, item): (usize, &[u8])| {
            let join = |v: u64, &b: &u8| v << 8 | u64::from(b);
            let bits = if self.big_endian { item.iter().fold(0, join) } else { item.iter().rev().fold(0, join) };
            let negative = self.kind == 'i' && bits >> (8 * self.item_bytes - 1) == 1;
            let label = u32::try_from(bits).ok().filter(|_| !negative);
            label.ok_or_else(|| format!("label of image {i} is negative or beyond any class (bits {bits:#x})"))
        };
        items.enumerate().map(number).collect()
    }
}

/// (kind, bytes, big-endian) of numpy's type string, such as "|u1" or "<i8".
fn dtype(descr: &str) -> Option<(char, usize, bool)> {
    let mut chars = descr.chars();
    let order = chars.next()?;
    let kind = chars.next()?;
    let bytes = match chars.as_str() {
        "1" => 1,
        "2" => 2,
        "4" => 4,
        "8" => 8,
        _ => return None,
    };
    matches!(order, '|' | '<' | '>' | '=').then_some((kind, bytes, order == '>'))
}

/// (bytes, from, to) of a member of the zip archive: in place where it is stored, inflated where it is deflated.
/// Its checksum and size are verified.
fn member(file: &Bytes, name: &str) -> std::result::Result<(Bytes, usize, usize), String> {
    let broken = |e: rawzip::Error| format!("damaged or truncated zip archive: {e}");
    let unpack = |e: std::io::Error| format!("damaged zip archive, {name}: {e}");
    let archive = ZipArchive::from_slice(&file[..]).map_err(broken)?;
    let mut entries = archive.entries();
    let (place, method) = loop {
        match entries.next_entry().map_err(broken)? {
            None => return Err(format!("the .npz holds no {name}: wanted x_train, y_train, x_test and y_test")),
            Some(entry) if entry.file_path().as_ref() == name.as_bytes() => {
                break (entry.wayfinder(), entry.compression_method());
            }
            Some(_) => {}
        }
    };
    let entry = archive.get_entry(place).map_err(broken)?;
    let packed = entry.data();
    let claimed = usize::try_from(place.uncompressed_size_hint()).unwrap_or(usize::MAX);
    if method == CompressionMethod::STORE {
        std::io::copy(&mut entry.verifying_reader(packed), &mut std::io::sink()).map_err(unpack)?;
        let from = packed.as_ptr() as usize - file.as_ptr() as usize;
        return Ok((file.clone(), from, from + packed.len()));
    }
    if method != CompressionMethod::DEFLATE {
        return Err(format!("{name} is packed by {method:?}: wanted stored or deflated (numpy.savez_compressed)"));
    }
    if claimed > most_inflated(packed.len()) {
        return Err(format!("{name} claims {claimed} bytes, more than its {} packed bytes can hold", packed.len()));
    }
    // Grows with what really comes and stops one byte past the claim; the verifier then refuses it.
    let mut data = Vec::new();
    let limited = DeflateDecoder::new(packed).take(claimed as u64 + 1);
    entry.verifying_reader(limited).read_to_end(&mut data).map_err(unpack)?;
    let len = data.len();
    Ok((Bytes::Owned(data.into()), 0, len))
}

/// The dictionary in front of the data: {'descr': '|u1', 'fortran_order': False, 'shape': (60000, 28, 28), }.
struct Header {
    descr: String,
    fortran: bool,
    shape: Vec<usize>,
}

impl Header {
    fn parse(text: &str) -> Option<Self> {
        let mut rest = text.trim().strip_prefix('{')?.trim_start();
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        while !rest.starts_with('}') {
            let (key, after) = quoted(rest)?;
            let after = after.trim_start().strip_prefix(':')?.trim_start();
            rest = match key {
                "descr" => {
                    let (value, after) = quoted(after)?;
                    descr = Some(value.to_string());
                    after
                }
                "fortran_order" => {
                    let value = after.starts_with("True");
                    fortran = Some(value);
                    after.strip_prefix(if value { "True" } else { "False" })?
                }
                "shape" => {
                    let (inside, after) = after.strip_prefix('(')?.split_once(')')?;
                    let sizes = inside.split(',').map(str::trim).filter(|s| !s.is_empty());
                    // Python 2 wrote long numbers with an L. More than 8 dimensions is no image.
                    let sizes: Option<Vec<usize>> =
                        sizes.take(9).map(|s| s.trim_end_matches('L').parse().ok()).collect();
                    shape = Some(sizes.filter(|s| s.len() <= 8)?);
                    after
                }
                _ => return None,
            };
            rest = rest.trim_start();
            match rest.strip_prefix(',') {
                Some(after) => rest = after.trim_start(),
                None if rest.starts_with('}') => {}
                None => return None,
            }
        }
        (rest == "}").then_some(Header { descr: descr?, fortran: fortran?, shape: shape? })
    }
}

/// (inside, rest) of a string in single or double quotes.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let mark = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    text[1..].split_once(mark)
}
