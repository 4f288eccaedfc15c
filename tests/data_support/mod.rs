//! Data sets of known content, written in each real layout. Shared by the tests of `data`.
#![allow(dead_code)] // each test binary uses a part

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use sparse_engine::data::{Dataset, Split, open};
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

/// (file name, bytes).
pub type Named = (String, Vec<u8>);
/// (name of an array, its .npy file).
pub type Member = (&'static str, Vec<u8>);

pub const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/data");

/// Byte `p` of image `i` of file `f`: the rule of `fixtures/data/make_cifar_pickles.py`.
pub fn pixel(f: usize, i: usize, p: usize) -> u8 {
    ((31 * f + 7 * i + 3 * p) % 256) as u8
}

pub fn label(f: usize, i: usize, classes: usize) -> u8 {
    ((3 * f + i) % classes) as u8
}

/// Images of file `f`, one after the other.
pub fn images(f: usize, count: usize, size: usize) -> Vec<u8> {
    (0..count).flat_map(|i| (0..size).map(move |p| pixel(f, i, p))).collect()
}

pub fn labels(f: usize, count: usize, classes: usize) -> Vec<u8> {
    (0..count).map(|i| label(f, i, classes)).collect()
}

/// (images in C, H, W order, labels) as read.
pub fn content(split: &Split) -> (Vec<u8>, Vec<u8>) {
    let size = split.shape().numel();
    let mut all = vec![0xAA; split.len() * size];
    for (i, out) in all.chunks_exact_mut(size).enumerate() {
        split.image(i, out);
    }
    (all, (0..split.len()).map(|i| split.label(i) as u8).collect())
}

pub fn opened(path: &Path) -> Dataset {
    open(path.to_str().unwrap()).unwrap_or_else(|e| panic!("{e}"))
}

/// The message of a refusal: one line that names the path.
pub fn refused(path: &Path) -> String {
    let error = open(path.to_str().unwrap()).err().unwrap_or_else(|| panic!("{} was accepted", path.display()));
    assert_eq!(error.exit_code(), 1, "{error}");
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message}");
    assert!(message.contains(path.to_str().unwrap()), "{message} does not name {}", path.display());
    message
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::default());
    out.write_all(data).unwrap();
    out.finish().unwrap()
}

pub fn idx(dims: &[u32], data: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 0, 8, dims.len() as u8];
    dims.iter().for_each(|d| out.extend(d.to_be_bytes()));
    out.extend(data);
    out
}

/// The four files of an IDX set of 5 x 4 images, 10 classes: (name, bytes).
pub fn idx_files(train: usize, test: usize) -> Vec<Named> {
    let split = |f: usize, name: &str, n: usize| {
        [
            (format!("{name}-images-idx3-ubyte"), idx(&[n as u32, 5, 4], &images(f, n, 20))),
            (format!("{name}-labels-idx1-ubyte"), idx(&[n as u32], &labels(f, n, 10))),
        ]
    };
    split(0, "train", train).into_iter().chain(split(1, "t10k", test)).collect()
}

pub fn write_all(folder: &Path, files: &[Named]) {
    std::fs::create_dir_all(folder).unwrap();
    files.iter().for_each(|(name, data)| std::fs::write(folder.join(name), data).unwrap());
}

/// CIFAR-10's binary files with `count` images each, or CIFAR-100's.
pub fn cifar_bin(classes: usize, count: usize) -> Vec<Named> {
    let names: Vec<String> = match classes {
        10 => (1..=5).map(|i| format!("data_batch_{i}.bin")).chain(["test_batch.bin".into()]).collect(),
        _ => vec!["train.bin".into(), "test.bin".into()],
    };
    let file = |(f, name): (usize, String)| -> Named {
        let mut out = Vec::new();
        for i in 0..count {
            let label = label(f, i, classes);
            if classes == 100 {
                out.push(label / 5);
            }
            out.push(label);
            out.extend((0..3072).map(|p| pixel(f, i, p)));
        }
        (name, out)
    };
    names.into_iter().enumerate().map(file).collect()
}

/// A .npy file of version 1.
pub fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut head = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    while (10 + head.len() + 1) % 64 != 0 {
        head.push(' ');
    }
    head.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((head.len() as u16).to_le_bytes());
    out.extend(head.as_bytes());
    out.extend(data);
    out
}

/// Members (name without .npy, bytes) in a zip archive; numpy writes each with 64-bit sizes, as here.
pub fn npz(members: &[Member], deflate: bool) -> Vec<u8> {
    let method = if deflate { zip::CompressionMethod::Deflated } else { zip::CompressionMethod::Stored };
    let options = zip::write::SimpleFileOptions::default().compression_method(method).large_file(true);
    let mut out = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, data) in members {
        out.start_file(format!("{name}.npy"), options).unwrap();
        out.write_all(data).unwrap();
    }
    out.finish().unwrap().into_inner()
}

/// The same images as [`idx_files`], as .npz members.
pub fn npz_members(train: usize, test: usize) -> Vec<Member> {
    vec![
        ("x_train", npy("|u1", &format!("({train}, 5, 4)"), &images(0, train, 20))),
        ("y_train", npy("|u1", &format!("({train},)"), &labels(0, train, 10))),
        ("x_test", npy("|u1", &format!("({test}, 5, 4)"), &images(1, test, 20))),
        ("y_test", npy("|u1", &format!("({test},)"), &labels(1, test, 10))),
    ]
}

/// A tar archive of files below `folder`.
pub fn tar(folder: &str, files: &[Named]) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        out.append_data(&mut header, format!("{folder}/{name}"), data.as_slice()).unwrap();
    }
    out.into_inner().unwrap()
}

/// An element of a MATLAB 5 file: type, size, data, padding.
pub fn mat_element(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = [kind.to_le_bytes(), (data.len() as u32).to_le_bytes()].concat();
    out.extend(data);
    out.resize(out.len().next_multiple_of(8), 0);
    out
}

/// A matrix: array class, name, dimensions, type of the stored numbers, numbers.
pub fn mat_matrix(class: u8, name: &str, dims: &[u32], kind: u32, data: &[u8]) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|d| d.to_le_bytes()).collect();
    // A short name lies within its tag, as MATLAB writes it.
    let mut short = [1u16.to_le_bytes(), (name.len() as u16).to_le_bytes()].concat();
    short.extend(name.as_bytes());
    short.resize(8, 0);
    let parts = [mat_element(6, &[class, 0, 0, 0, 0, 0, 0, 0]), mat_element(5, &dims), short, mat_element(kind, data)];
    mat_element(14, &parts.concat())
}

/// A file of elements, each compressed or not.
pub fn mat(elements: &[Vec<u8>], compress: bool) -> Vec<u8> {
    let mut out = b"MATLAB 5.0 MAT-file, by the tests".to_vec();
    out.resize(124, b' ');
    out.extend([0, 1, b'I', b'M']);
    for element in elements {
        if compress {
            let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
            zlib.write_all(element).unwrap();
            let zlib = zlib.finish().unwrap();
            out.extend([15u32.to_le_bytes(), (zlib.len() as u32).to_le_bytes()].concat());
            out.extend(zlib);
        } else {
            out.extend(element);
        }
    }
    out
}

/// X and y of file `f` as SVHN holds them: rows vary fastest, and 10 is the digit 0.
pub fn svhn(f: usize, count: usize) -> [Vec<u8>; 2] {
    let chw = images(f, count, 3072);
    let x: Vec<u8> = (0..chw.len()).map(|k| chw[k / 1024 * 1024 + k % 32 * 32 + k % 1024 / 32]).collect();
    let y: Vec<u8> = labels(f, count, 10).into_iter().map(|l| if l == 0 { 10 } else { l }).collect();
    [mat_matrix(9, "X", &[32, 32, 3, count as u32], 2, &x), mat_matrix(6, "y", &[count as u32, 1], 2, &y)]
}

/// Both files of SVHN.
pub fn svhn_files(train: usize, test: usize, compress: bool) -> Vec<Named> {
    let file = |(f, (name, n)): (usize, (&str, usize))| (format!("{name}_32x32.mat"), mat(&svhn(f, n), compress));
    [("train", train), ("test", test)].into_iter().enumerate().map(file).collect()
}

/// Files of a fixture folder, by name.
pub fn fixture(folder: &str) -> Vec<Named> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(Path::new(FIXTURES).join(folder)).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let file = |p: PathBuf| (p.file_name().unwrap().to_str().unwrap().to_string(), std::fs::read(p).unwrap());
    files.into_iter().map(file).collect()
}
