//! MATLAB 5 .mat files, as far as arrays of numbers go: what SVHN is published in.
//!
//! A header of 128 bytes, then elements: a type and a size of 32 bits each, then the data, padded to 8 bytes. A matrix is an
//! element of elements (flags, dimensions, name, numbers in column-major order); a compressed element is the zlib stream of
//! one. The matfile crate was weighed: it reads every variable whole and reserves what a header claims.

use super::files::most_inflated;
use flate2::read::ZlibDecoder;
use std::io::Read;

const HEADER: usize = 128;
/// MATLAB's longest name has 63 characters; more than 8 dimensions is no image.
const MAX_NAME: usize = 64;
const MAX_DIMS: usize = 8;

/// Types of elements.
const INT8: u32 = 1;
const UINT8: u32 = 2;
const INT32: u32 = 5;
const UINT32: u32 = 6;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;

/// Bit of the array flags: there is an imaginary part.
const COMPLEX: u32 = 0x800;
/// Classes of arrays from double (6) to uint64 (15); below are cells, structures, objects, text and sparse matrices.
const NUMBERS: std::ops::RangeInclusive<u32> = 6..=15;

type Result<T> = std::result::Result<T, String>;

/// An array of numbers; the first dimension varies fastest.
pub(super) struct Array {
    pub dims: Vec<usize>,
    /// Type of the stored numbers, which may be narrower than the array's class.
    kind: u32,
    bytes: Vec<u8>,
}

/// Whether the file begins as MATLAB writes it, in any version.
pub(super) fn is_mat(bytes: &[u8]) -> bool {
    bytes.starts_with(b"MATLAB ")
}

/// The variable `name`. Others are not unpacked beyond their names.
pub(super) fn variable(file: &[u8], name: &str) -> Result<Array> {
    let header = file.get(..HEADER).ok_or_else(|| format!("truncated: {} bytes, no room for a header", file.len()))?;
    if !is_mat(file) || header[124..] != [0, 1, b'I', b'M'] {
        let text: String = header[..30].iter().map(|&b| if b.is_ascii_graphic() { b as char } else { ' ' }).collect();
        return Err(format!(
            "not a little-endian MATLAB 5 file (it begins with \"{}\"): wanted one saved by MATLAB's -v7 or -v6",
            text.trim_end()
        ));
    }
    let (mut at, mut found, mut seen) = (HEADER, None, Vec::new());
    while at < file.len() {
        let (kind, size) = tag(&mut &file[at..]).map_err(|what| format!("{what} at byte {at}"))?;
        let data = &file[at + 8..];
        let left = data.len();
        let data = data
            .get(..size)
            .ok_or_else(|| format!("truncated: the element at byte {at} claims {size} bytes, {left} are left"))?;
        let fault = |what| format!("{what} in the element at byte {at}");
        let array = match kind {
            MATRIX => matrix(&mut &*data, size, name).map_err(fault)?,
            COMPRESSED => compressed(data, name).map_err(fault)?,
            _ => Named::Other(String::new()),
        };
        match array {
            Named::Wanted(_) if found.is_some() => return Err(format!("the variable {name} is in it twice")),
            Named::Wanted(array) => found = Some(array),
            Named::Other(other) if seen.len() < 8 && !other.is_empty() => seen.push(other),
            Named::Other(_) => {}
        }
        // Compressed elements alone are not padded.
        at += 8 + if kind == COMPRESSED { size } else { size.next_multiple_of(8).min(left) };
    }
    found.ok_or_else(|| format!("no variable {name} in it, but {seen:?}"))
}

enum Named {
    Wanted(Array),
    Other(String),
}

/// The one matrix in a zlib stream; of the wanted one the checksum is verified.
fn compressed(data: &[u8], name: &str) -> Result<Named> {
    let mut stream = ZlibDecoder::new(data);
    let (kind, size) = tag(&mut stream)?;
    if kind != MATRIX {
        return Err(format!("compressed data of type {kind}, wanted a matrix ({MATRIX})"));
    }
    if size > most_inflated(data.len()) {
        return Err(format!("a claim of {size} bytes, more than {} compressed bytes can hold,", data.len()));
    }
    let found = matrix(&mut (&mut stream).take(size as u64), size, name)?;
    if let Named::Wanted(_) = found {
        let padding = (&mut stream).take(9).read_to_end(&mut Vec::new()).map_err(damaged)?;
        if padding > 8 {
            return Err("more data than claimed".into());
        }
    }
    Ok(found)
}

/// The content of a matrix of `size` bytes; the numbers are read only where it has the wanted name.
fn matrix(from: &mut dyn Read, size: usize, name: &str) -> Result<Named> {
    let word = |bytes: &[u8], i: usize| {
        u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
    };
    let flags = small(from, UINT32, 8, "array flags")?;
    if flags.len() != 8 {
        return Err("odd array flags".into());
    }
    let flags = word(&flags, 0);
    let dims = small(from, INT32, 4 * MAX_DIMS, "dimensions")?;
    let dims: Vec<u32> = (0..dims.len() / 4).map(|i| word(&dims, i)).collect();
    let label = small(from, INT8, MAX_NAME, "name")?;
    if label != name.as_bytes() {
        return Ok(Named::Other(label.iter().map(|&b| if b.is_ascii_graphic() { b as char } else { '?' }).collect()));
    }
    if !NUMBERS.contains(&(flags & 0xFF)) || flags & COMPLEX != 0 {
        return Err(format!("{name} is no array of real numbers (flags {flags:#x})"));
    }
    let dims: Vec<usize> = dims.into_iter().map(|d| d as usize).collect();
    let (kind, len, inline) = element(from)?;
    let item = item_bytes(kind).ok_or_else(|| format!("{name} holds data of type {kind}: wanted numbers"))?;
    let claimed = dims.iter().try_fold(item, |p, &d| p.checked_mul(d));
    if claimed != Some(len) {
        return Err(format!("{name} has dimensions {dims:?} of {item} byte(s) each but {len} bytes of data"));
    }
    if len > size {
        return Err(format!("{name} claims {len} bytes, its element has {size}"));
    }
    let bytes = match inline {
        Some(bytes) => bytes[..len].to_vec(),
        None => exactly(from, len)?,
    };
    Ok(Named::Wanted(Array { dims, kind, bytes }))
}

fn item_bytes(kind: u32) -> Option<usize> {
    match kind {
        1 | 2 => Some(1),
        3 | 4 => Some(2),
        5..=7 => Some(4),
        9 | 12 | 13 => Some(8),
        _ => None,
    }
}

fn damaged(e: std::io::Error) -> String {
    format!("damaged or truncated data ({e})")
}

/// Type and size.
fn tag(from: &mut dyn Read) -> Result<(u32, usize)> {
    let mut tag = [0; 8];
    from.read_exact(&mut tag).map_err(damaged)?;
    let [kind, size] = [0, 4].map(|i| u32::from_le_bytes([tag[i], tag[i + 1], tag[i + 2], tag[i + 3]]));
    Ok((kind, size as usize))
}

/// Type, size, and the data where it is within the tag: up to 4 bytes, whose size then is the type's upper half.
fn element(from: &mut dyn Read) -> Result<(u32, usize, Option<[u8; 4]>)> {
    let (kind, size) = tag(from)?;
    if kind >> 16 == 0 {
        return Ok((kind, size, None));
    }
    let len = (kind >> 16) as usize;
    if len > 4 {
        return Err(format!("an element of {len} bytes within its tag"));
    }
    Ok((kind & 0xFFFF, len, Some((size as u32).to_le_bytes())))
}

/// An element of the type `wanted` and at most `most` bytes, with its padding.
fn small(from: &mut dyn Read, wanted: u32, most: usize, what: &str) -> Result<Vec<u8>> {
    let (kind, len, inline) = element(from)?;
    if kind != wanted || len > most {
        return Err(format!("{what} of type {kind} in {len} bytes: wanted type {wanted} in at most {most}"));
    }
    match inline {
        Some(bytes) => Ok(bytes[..len].to_vec()),
        None => {
            let mut bytes = exactly(from, len.next_multiple_of(8))?;
            bytes.truncate(len);
            Ok(bytes)
        }
    }
}

/// Grows with what really comes.
fn exactly(from: &mut dyn Read, len: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(len as u64).read_to_end(&mut bytes).map_err(damaged)?;
    if bytes.len() < len {
        return Err(format!("truncated data: {} of {len} bytes", bytes.len()));
    }
    Ok(bytes)
}

impl Array {
    /// The bytes of an array stored as uint8.
    pub(super) fn into_bytes(self) -> Result<Vec<u8>> {
        if self.kind == UINT8 { Ok(self.bytes) } else { Err(format!("numbers of type {}: wanted uint8", self.kind)) }
    }

    /// Whole numbers of any type; one that is not whole or beyond 2^31 is `None`.
    pub(super) fn integers(&self) -> impl Iterator<Item = Option<u32>> {
        let kind = self.kind;
        let Some(item) = item_bytes(kind) else { unreachable!("checked when it was read") };
        self.bytes.chunks_exact(item).map(move |b| {
            let bits = b.iter().rev().fold(0u64, |v, &b| v << 8 | u64::from(b));
            let number = match kind {
                7 => f64::from(f32::from_bits(bits as u32)),
                9 => f64::from_bits(bits),
                // Sign-extended: a negative number becomes one too large.
                1 | 3 | 5 | 12 if bits >> (8 * item - 1) == 1 => f64::INFINITY,
                _ => bits as f64,
            };
            (number >= 0.0 && number < f64::from(1u32 << 31) && number.fract() == 0.0).then_some(number as u32)
        })
    }
}
