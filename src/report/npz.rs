//! numpy's .npz, written: a zip of .npy files, stored, for `numpy.load`.

use super::files;
use crate::error::{Error, Result};
use rawzip::ZipArchiveWriter;
use std::io::{self, Write};
use std::path::Path;

/// An array in C order.
#[derive(Clone, Copy, Debug)]
pub struct NpzArray<'a> {
    /// Its key in the file: ASCII letters, digits and `_`.
    pub name: &'a str,
    /// Its dimensions; their product is the length of `numbers`.
    pub shape: &'a [usize],
    /// Its numbers.
    pub numbers: Numbers<'a>,
}

/// Numbers of an array, with their type in the file.
#[derive(Clone, Copy, Debug)]
pub enum Numbers<'a> {
    /// float32.
    F32(&'a [f32]),
    /// int64, as PyTorch has labels.
    I64(&'a [u32]),
}

/// Writes `arrays` to `path`, whole or not at all; the same arrays give the same bytes. No array is copied as a whole.
///
/// # Errors
/// A name that is empty, has other characters or stands twice; a shape that does not fit the numbers; a file that cannot be
/// written.
///
/// ```
/// use sparse_engine::report::{NpzArray, Numbers, write_npz};
///
/// let folder = std::env::temp_dir().join(format!("npz-example-{}", std::process::id()));
/// std::fs::create_dir_all(&folder)?;
/// let logits = NpzArray { name: "logits", shape: &[1, 2], numbers: Numbers::F32(&[0.5, -1.5]) };
/// let labels = NpzArray { name: "labels", shape: &[1], numbers: Numbers::I64(&[1]) };
/// write_npz(&folder.join("logits.npz"), &[logits, labels])?; // numpy.load("logits.npz")["logits"]
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write_npz(path: &Path, arrays: &[NpzArray]) -> Result<()> {
    for (i, array) in arrays.iter().enumerate() {
        array.check(&arrays[..i]).map_err(|what| Error::data(path, format!("array {:?}: {what}", array.name)))?;
    }
    files::replace(path, "cannot write the arrays", |out| {
        let mut archive = ZipArchiveWriter::new(out);
        for array in arrays {
            let member = format!("{}.npy", array.name);
            let (mut entry, config) = archive.new_file(&member).start().map_err(io::Error::other)?;
            let mut data = config.wrap(&mut entry);
            array.write(&mut data)?;
            let (_, descriptor) = data.finish().map_err(io::Error::other)?;
            entry.finish(descriptor).map_err(io::Error::other)?;
        }
        archive.finish().map(|_| ()).map_err(io::Error::other)
    })
}

impl NpzArray<'_> {
    fn check(&self, before: &[NpzArray]) -> std::result::Result<(), String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if self.name.is_empty() || self.name.len() > 255 || !self.name.chars().all(plain) {
            return Err("wanted a name of 1 to 255 ASCII letters, digits and _".into());
        }
        if before.iter().any(|other| other.name == self.name) {
            return Err("stands twice: give each array its own name".into());
        }
        let numbers = self.numbers.len();
        match self.shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side)) {
            Some(size) if size == numbers => Ok(()),
            _ => Err(format!("{numbers} numbers for the shape {:?}", self.shape)),
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let shape: String = self.shape.iter().map(|side| format!("{side}, ")).collect();
        let dtype = self.numbers.dtype();
        let dictionary = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({}), }}", shape.trim_end());
        // The data begins at a multiple of 64 bytes of the member; a newline ends the header.
        let length = (10 + dictionary.len() + 1).next_multiple_of(64) - 10;
        let short = u16::try_from(length).map_err(|_| io::Error::other("more dimensions than .npy version 1 holds"))?;
        out.write_all(b"\x93NUMPY\x01\x00")?;
        out.write_all(&short.to_le_bytes())?;
        writeln!(out, "{dictionary:0$}", length - 1)?;
        self.numbers.write(out)
    }
}

/// Numbers converted at a time.
const CHUNK: usize = 4096;

impl Numbers<'_> {
    fn len(&self) -> usize {
        match self {
            Numbers::F32(numbers) => numbers.len(),
            Numbers::I64(numbers) => numbers.len(),
        }
    }

    fn dtype(&self) -> &'static str {
        match self {
            Numbers::F32(_) => "<f4",
            Numbers::I64(_) => "<i8",
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(8 * CHUNK);
        let mut flush = |bytes: &mut Vec<u8>| out.write_all(bytes).map(|()| bytes.clear());
        match self {
            Numbers::F32(numbers) => numbers.chunks(CHUNK).try_for_each(|chunk| {
                chunk.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
                flush(&mut bytes)
            }),
            Numbers::I64(numbers) => numbers.chunks(CHUNK).try_for_each(|chunk| {
                chunk.iter().for_each(|&v| bytes.extend_from_slice(&i64::from(v).to_le_bytes()));
                flush(&mut bytes)
            }),
        }
    }
}
