//! `.npz` files as another reader sees them.

use super::numbers;
use sparse_engine::report::{NpzArray, Numbers, write_npz};
use std::io::Read;
use std::path::Path;

/// Header text and data of a member, its checksum verified by the zip crate.
fn member(path: &Path, name: &str) -> (String, Vec<u8>) {
    let mut archive = zip::ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
    let mut bytes = Vec::new();
    archive.by_name(name).unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let end = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert_eq!((end % 64, bytes[end - 1]), (0, b'\n'), "data at a multiple of 64, after a newline");
    (String::from_utf8(bytes[10..end].to_vec()).unwrap().trim_end().to_string(), bytes[end..].to_vec())
}

#[test]
fn arrays_read_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("logits.npz");
    std::fs::write(&path, "an older file").unwrap();
    let mut number = numbers(4);
    // More than what is converted at a time, and no multiple of it.
    let logits: Vec<f32> =
        (0..10_007 * 3).map(|_| (number() * 1e3 - 500.0) as f32).chain([f32::NAN, -0.0, 1e-40]).collect();
    let labels: Vec<u32> = (0..10_008).map(|i| i * 429_145).collect();
    let arrays = [
        NpzArray { name: "logits", shape: &[10_008, 3], numbers: Numbers::F32(&logits) },
        NpzArray { name: "labels", shape: &[10_008], numbers: Numbers::I64(&labels) },
        NpzArray { name: "empty", shape: &[0, 7], numbers: Numbers::F32(&[]) },
        NpzArray { name: "scalar", shape: &[], numbers: Numbers::I64(&[u32::MAX]) },
    ];
    write_npz(&path, &arrays).unwrap();
    let (header, data) = member(&path, "logits.npy");
    assert_eq!(header, "{'descr': '<f4', 'fortran_order': False, 'shape': (10008, 3,), }");
    let bits: Vec<u32> = data.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(bits, logits.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
    let (header, data) = member(&path, "labels.npy");
    assert_eq!(header, "{'descr': '<i8', 'fortran_order': False, 'shape': (10008,), }");
    let read: Vec<i64> = data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(read, labels.iter().map(|&v| i64::from(v)).collect::<Vec<_>>());
    let (header, data) = member(&path, "empty.npy");
    assert_eq!((header.contains("'shape': (0, 7,)"), data.len()), (true, 0));
    let (header, data) = member(&path, "scalar.npy");
    assert_eq!((header.contains("'shape': ()"), data), (true, 4_294_967_295i64.to_le_bytes().to_vec()));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");

    let bytes = std::fs::read(&path).unwrap();
    write_npz(&path, &arrays).unwrap();
    assert!(std::fs::read(&path).unwrap() == bytes, "the same bytes at any time");
}

#[test]
fn what_numpy_could_not_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npz");
    let array = |name, shape| NpzArray { name, shape, numbers: Numbers::F32(&[1.0, 2.0]) };
    let long = "x".repeat(256);
    for (arrays, says) in [
        (vec![array("", &[2][..])], "array \"\": wanted a name"),
        (vec![array("../a", &[2])], "wanted a name"),
        (vec![array(&long, &[2])], "wanted a name"),
        (vec![array("a", &[2]), array("b", &[2]), array("a", &[2])], "array \"a\": stands twice"),
        (vec![array("a", &[3])], "2 numbers for the shape [3]"),
        (vec![array("a", &[usize::MAX, 2])], "2 numbers for the shape"),
    ] {
        let error = write_npz(&path, &arrays).unwrap_err();
        assert!(error.to_string().contains(says) && error.to_string().contains("a.npz: "), "{error}");
        assert!(!path.exists());
    }
    let error = write_npz(&folder.path().join("no/a.npz"), &[array("a", &[2])]).unwrap_err();
    assert!(error.to_string().contains("no/a.npz: cannot write the arrays: "), "{error}");
}
