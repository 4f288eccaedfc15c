//! Bad data is refused in one line that names the file: no panic, and no memory for what a header merely claims.

mod data_support;
use data_support::*;
use peak_alloc::PeakAlloc;
use sparse_engine::data::open;
use std::path::{Path, PathBuf};

/// All tests of this file together stay below this, whatever the headers claim (they hold about 10 MB).
const MOST_BYTES: usize = 64 << 20;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

fn memory_stays_small() {
    let peak = MEMORY.peak_usage();
    assert!(peak < MOST_BYTES, "{peak} bytes were allocated at once");
}

/// A folder of files, one of which is replaced for each case.
struct Set {
    dir: tempfile::TempDir,
    files: Vec<Named>,
}

impl Set {
    fn new(files: Vec<Named>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_all(dir.path(), &files);
        opened(dir.path());
        Set { dir, files }
    }

    fn path(&self, i: usize) -> PathBuf {
        self.dir.path().join(&self.files[i].0)
    }

    /// The message with file `i` changed; it must name `blamed`.
    fn with(&self, i: usize, blamed: usize, change: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut bytes = self.files[i].1.clone();
        change(&mut bytes);
        std::fs::write(self.path(i), bytes).unwrap();
        let message = refused(self.dir.path());
        std::fs::write(self.path(i), &self.files[i].1).unwrap();
        let blamed = self.path(blamed);
        assert!(message.contains(blamed.to_str().unwrap()), "{message} does not name {}", blamed.display());
        message
    }
}

#[track_caller]
fn says(message: &str, wanted: &[&str]) {
    assert!(wanted.iter().all(|w| message.contains(w)), "{message:?} does not say {wanted:?}");
}

#[test]
fn paths_that_are_no_data() {
    let dir = tempfile::tempdir().unwrap();
    says(&refused(&dir.path().join("nowhere")), &["no such file or folder", "builtin:fashion-mnist"]);
    let error = open("builtin:mnist").err().unwrap();
    assert_eq!(error.exit_code(), 2);
    says(&error.to_string(), &["builtin:mnist", "builtin:fashion-mnist"]);
    for (name, bytes) in [("text", b"hello world".as_slice()), ("pickle", b"\x80\x02}."), ("gz", &gzip(b"hello"))] {
        std::fs::write(dir.path().join(name), bytes).unwrap();
        says(&refused(&dir.path().join(name)), &["not a data set that is known"]);
    }
    std::fs::write(dir.path().join("empty"), b"").unwrap();
    says(&refused(&dir.path().join("empty")), &["empty file"]);
    memory_stays_small();
}

#[test]
fn idx_faults() {
    let set = Set::new(idx_files(30, 10));
    let cut = |n: usize| move |b: &mut Vec<u8>| b.truncate(n);
    says(&set.with(0, 0, cut(500)), &["truncated", "claims 600 bytes", "holds 484"]);
    says(&set.with(0, 0, cut(10)), &["truncated", "10 bytes"]);
    says(&set.with(0, 0, |b| b.push(0)), &["overlong", "claims 600 bytes", "holds 601"]);
    says(&set.with(0, 0, |b| b[4..16].fill(0xFF)), &["claims"]);
    says(&set.with(0, 0, |b| b[4..8].fill(0x7F)), &["claims"]);
    says(&set.with(0, 0, |b| b[3] = 1), &["wanted 00000803, got 00000801"]);
    says(&set.with(0, 0, |b| b[2] = 0x0D), &["unsigned bytes", "got 00000d03"]);
    says(&set.with(0, 0, |b| *b = idx(&[0, 5, 4], &[])), &["empty"]);
    says(&set.with(0, 0, |b| b.clear()), &["empty file"]);
    says(&set.with(1, 1, |b| *b = idx(&[29], &labels(0, 29, 10))), &["29 labels for the 30 images"]);
    says(&set.with(3, 3, |b| b[8] = 10), &["label 10 of test image 0", "0 to 9"]);
    says(&set.with(2, 3, |b| *b = idx(&[10, 4, 5], &images(1, 10, 20))), &["1 x 4 x 5", "1 x 5 x 4"]);

    std::fs::remove_file(set.path(3)).unwrap();
    says(&refused(set.dir.path()), &["t10k-labels-idx1-ubyte", "needs all four"]);
    memory_stays_small();
}

#[test]
fn idx_gzip_faults() {
    let zipped = idx_files(30, 10).into_iter().map(|(n, d)| (format!("{n}.gz"), gzip(&d))).collect();
    let set = Set::new(zipped);
    let half = |b: &mut Vec<u8>| b.truncate(b.len() / 2);
    says(&set.with(0, 0, half), &["damaged or truncated gzip"]);
    says(&set.with(0, 0, |b| *b.iter_mut().nth_back(5).unwrap() ^= 1), &["damaged or truncated gzip"]); // its checksum
    says(&set.with(0, 0, |b| b.extend(b"rubbish")), &["damaged or truncated gzip"]);
    let raw = |dims: &[u32], n: usize| gzip(&idx(dims, &vec![1; n]));
    says(&set.with(0, 0, |b| *b = raw(&[30, 5, 4], 599)), &["truncated file", "claims 600 bytes", "holds 599"]);
    says(&set.with(0, 0, |b| *b = raw(&[30, 5, 4], 601)), &["overlong", "holds more"]);
    says(&set.with(0, 0, |b| *b = raw(&[u32::MAX, 5, 4], 600)), &["more than its"]);
    says(&set.with(0, 0, |b| *b = raw(&[u32::MAX; 3], 600)), &["too many"]);
    // A bomb: 1 GB of zeros behind an honest header is not read.
    let zeros = gzip(&vec![0; 1 << 20]);
    says(&set.with(0, 0, |b| *b = [raw(&[30, 5, 4], 600), zeros.repeat(1000)].concat()), &["overlong"]);
    memory_stays_small();
}

#[test]
fn cifar_binary_faults() {
    let set = Set::new(cifar_bin(10, 2));
    says(&set.with(2, 2, |b| b.truncate(4000)), &["truncated", "4000 bytes", "multiple of 3073"]);
    says(&set.with(5, 5, |b| b[3073] = 10), &["label [10] of image 1", "0 to 9"]);
    std::fs::remove_file(set.path(3)).unwrap();
    says(&refused(set.dir.path()), &["data_batch_4.bin", "no such file"]);

    let set = Set::new(cifar_bin(100, 2));
    says(&set.with(0, 0, |b| b[1] = 100), &["label [0, 100] of image 0", "0 to 99"]);
    says(&set.with(0, 0, |b| b[0] = 20), &["label [20, 0] of image 0", "0 to 19"]);
    memory_stays_small();
}

fn replace(bytes: &mut Vec<u8>, from: &[u8], to: &[u8]) {
    let at = bytes.windows(from.len()).position(|w| w == from).expect("not in the fixture");
    bytes.splice(at..at + from.len(), to.iter().copied());
}

#[test]
fn cifar_pickle_faults() {
    let set = Set::new(fixture("cifar-10-batches-py")); // data_batch_1..5, test_batch
    says(&set.with(0, 0, |b| b.truncate(3000)), &["pickle: truncated"]);
    says(&set.with(0, 0, |b| replace(b, b"U\x02u1", b"U\x02i1")), &["another type"]);
    says(&set.with(0, 0, |b| replace(b, b"U\x04data", b"U\x04dada")), &["no key \"data\""]);
    says(
        &set.with(0, 0, |b| replace(b, b"K\x02M\x00\x0c", b"K\x02M\x01\x0c")),
        &["claims 2 x 3073 bytes", "holds 6144"],
    );
    says(&set.with(0, 0, |b| replace(b, b"K\x02M\x00\x0c", b"K\x04M\x00\x06")), &["4 x 1536"]);
    says(&set.with(0, 0, |b| replace(b, b"(K\x00K\x01e", b"(K\x00K\x0ae")), &["label 10 of image 1", "0 to 9"]);
    says(&set.with(0, 0, |b| replace(b, b"(K\x00K\x01e", b"(K\x00J\xff\xff\xff\xffe")), &["label -1 of image 1"]);
    says(&set.with(0, 0, |b| replace(b, b"(K\x00K\x01e", b"(K\x00e")), &["1 labels for 2 images"]);
    says(&set.with(0, 0, |b| replace(b, b"(K\x00K\x01e", b"(K\x00Ne")), &["\"labels\"[1] is not an integer"]);
    // What a hostile pickle would run is not even named.
    says(&set.with(0, 0, |b| *b = b"cos\nsystem\n(S'true'\ntR.".to_vec()), &["opcode 0x53"]);
    says(&set.with(0, 0, |b| *b = b"\x80\x02]q\x00h\x00a.".to_vec()), &["not a dictionary"]); // a list in itself
    says(
        &set.with(0, 0, |b| *b = [b"\x80\x02".as_slice(), &[b']'; 2_000_000]].concat()),
        &["more than 1048576 opcodes"],
    );
    says(&set.with(0, 0, |b| *b = b"\x80\x02T\xff\xff\xff\x7f".to_vec()), &["truncated"]);
    says(&set.with(0, 0, |b| *b = b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff".to_vec()), &["truncated"]);
    says(&set.with(0, 0, |b| *b = b"\x80\x02Fhello".to_vec()), &["opcode 0x46"]);
    memory_stays_small();
}

#[test]
fn archive_faults() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cifar-10-python.tar.gz");
    let check = |bytes: &[u8], wanted: &[&str]| {
        std::fs::write(&path, bytes).unwrap();
        says(&refused(&path), wanted);
    };
    let files = fixture("cifar-10-batches-py");
    let good = tar("cifar-10-batches-py", &files);
    let packed = gzip(&good);
    check(&packed[..packed.len() - 4], &["damaged or truncated archive"]); // in the checksum, after the last byte
    check(&packed[..packed.len() / 2], &["damaged or truncated archive"]);
    let mut flipped = packed.clone();
    *flipped.iter_mut().nth_back(5).unwrap() ^= 1;
    check(&flipped, &["damaged or truncated archive"]);
    check(&good[..good.len() / 2], &["truncated"]);
    check(&gzip(&tar("x", &files[1..])), &["data_batch_1", "no such file"]);
    check(&gzip(&tar("x", &[("readme".into(), vec![1; 700])])), &["no known data set in this archive"]);
    check(&gzip(&tar("x", &[files[0].clone(), files[0].clone()])), &["in it twice"]);

    let mut header = tar::Header::new_ustar();
    header.set_path("x/data_batch_1").unwrap();
    header.set_size(1 << 40);
    header.set_cksum();
    check(&gzip(header.as_bytes()), &["claims 1099511627776 bytes"]);
    header.set_size(200 << 20);
    header.set_cksum();
    check(&gzip(header.as_bytes()), &["truncated"]);
    let zeros = gzip(&vec![0; 1 << 20]);
    check(&[packed, zeros.repeat(513)].concat(), &["unpacks to more than"]);
    memory_stays_small();
}

#[test]
fn npz_faults() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npz");
    let check = |change: &dyn Fn(&mut Vec<Member>), wanted: &[&str]| {
        for deflate in [true, false] {
            let mut members = npz_members(30, 10);
            change(&mut members);
            std::fs::write(&path, npz(&members, deflate)).unwrap();
            says(&refused(&path), wanted);
        }
    };
    let data = |n: usize| images(0, n, 20);
    check(&|m| drop(m.remove(3)), &["holds no y_test.npy"]);
    check(&|m| m.clear(), &["holds no x_train.npy"]);
    check(&|m| m[0].1.pop().map_or((), |_| ()), &["x_train", "claims 600 bytes", "holds 599"]);
    check(&|m| m[0].1.push(0), &["x_train", "claims 600 bytes", "holds 601"]);
    let huge = "(18446744073709551615, 5, 4)";
    check(&|m| m[0].1 = npy("|u1", huge, &data(30)), &["x_train", "too many"]);
    check(&|m| m[0].1 = npy("|u1", "(99999999999999999999, 5, 4)", &data(30)), &["cannot understand"]);
    check(&|m| m[0].1 = npy("|u1", "(4000000000, 5, 4)", &data(30)), &["claims 80000000000 bytes"]);
    check(&|m| m[0].1 = npy("|u1", "(-30, 5, 4)", &data(30)), &["cannot understand"]);
    check(&|m| m[0].1 = npy("|u1", "(0, 5, 4)", &[]), &["empty"]);
    check(&|m| m[0].1 = npy("|u1", "(30, 20)", &data(30)), &["wanted N,H,W"]);
    check(&|m| m[0].1 = npy("|u1", "(600)", &data(30)), &["wanted N,H,W"]);
    check(&|m| m[0].1 = npy("|O", "(30, 5, 4)", &data(30)), &["numbers of type \"|O\""]);
    check(&|m| m[0].1 = npy("|u1', 'x': '", "(30, 5, 4)", &data(30)), &["cannot understand"]);
    check(&|m| m[0].1 = b"\x93NUMPY\x01\x00\xff\xff{".to_vec(), &["truncated .npy header"]);
    check(&|m| m[0].1 = b"\x93NUMPY\x02\x00\xff\xff\xff\xff{".to_vec(), &["truncated .npy header"]);
    check(&|m| m[0].1 = b"\x93NUMPY\x09\x00\x00\x00".to_vec(), &["not a .npy file"]);
    check(&|m| replace(&mut m[0].1, b"False", b"True "), &["Fortran order"]);
    check(&|m| m[1].1 = npy("|u1", "(29,)", &labels(0, 29, 10)), &["y_train", "29 labels for the 30 images"]);
    check(&|m| m[1].1 = npy("|u1", "(15, 2)", &labels(0, 30, 10)), &["y_train", "wanted (N) or (N, 1)"]);
    check(&|m| *m[3].1.last_mut().unwrap() = 10, &["y_test", "label 10 of test image 9", "0 to 9"]);
    check(&|m| m[2].1 = npy("|u1", "(10, 4, 5)", &images(1, 10, 20)), &["1 x 4 x 5", "1 x 5 x 4"]);
    let wide = |v: u32| npy("<u4", "(30,)", &[v; 30].map(u32::to_le_bytes).concat());
    check(&|m| m[1].1 = wide(u32::MAX), &["y_train", "label 4294967295 of training image 0", "0 to 65535"]);

    // Contents that differ from the zip's checksum, and a claim beyond what deflate can do.
    for deflate in [true, false] {
        let good = npz(&npz_members(30, 10), deflate);
        let mut bad = good.clone();
        let at = bad.windows(6).position(|w| w == b"\x93NUMPY").unwrap_or(150);
        bad[at + 150] ^= 0x10;
        std::fs::write(&path, &bad).unwrap();
        says(&refused(&path), &["damaged"]);
        std::fs::write(&path, &good[..good.len() / 2]).unwrap();
        says(&refused(&path), &["damaged"]);
    }
    memory_stays_small();
}

#[test]
fn svhn_faults() {
    let set = Set::new(svhn_files(12, 10, false));
    let [x, y] = svhn(0, 12);
    let with = |elements: &[Vec<u8>], wanted: &[&str]| {
        for compress in [false, true] {
            says(&set.with(0, 0, |b| *b = mat(elements, compress)), wanted);
        }
    };
    let (chw, l) = (images(0, 12, 3072), [1; 12]);
    with(std::slice::from_ref(&x), &["no variable y", "[\"X\"]"]);
    with(&[], &["no variable X"]);
    with(&[x.clone(), x.clone(), y.clone()], &["X is in it twice"]);
    with(&[mat_matrix(9, "X", &[32, 32, 1, 36], 2, &chw), y.clone()], &["X is [32, 32, 1, 36]", "[32, 32, 3, N]"]);
    with(&[mat_matrix(9, "X", &[32, 32, 3, 0], 2, &[]), y.clone()], &["[32, 32, 3, 0]"]);
    with(&[mat_matrix(9, "X", &[32, 32, 3, 13], 2, &chw), y.clone()], &["[32, 32, 3, 13]", "36864 bytes of data"]);
    with(&[mat_matrix(9, "X", &[u32::MAX; 8], 2, &chw), y.clone()], &["4294967295"]);
    with(&[mat_matrix(9, "X", &[1; 9], 2, &chw), y.clone()], &["dimensions of type 5 in 36 bytes"]);
    let six = mat_matrix(9, "y", &[6, 1], 2, &l[..6]);
    with(&[mat_matrix(11, "X", &[32, 32, 3, 6], 4, &chw), six], &["type 4: wanted uint8"]);
    with(&[mat_matrix(1, "X", &[32, 32, 3, 12], 2, &chw), y.clone()], &["X is no array of real numbers"]);
    with(&[x.clone(), mat_matrix(9, "y", &[11, 1], 2, &l[1..])], &["y is [11, 1] for 12 images"]);
    with(&[x.clone(), mat_matrix(9, "y", &[12, 1], 2, &[&l[1..], &[0]].concat())], &["label 0 of image 11", "1 to 10"]);
    with(&[x.clone(), mat_matrix(9, "y", &[12, 1], 2, &[&[11], &l[1..]].concat())], &["label 11 of image 0"]);
    let reals = |v: f64| mat_matrix(6, "y", &[12, 1], 9, &[v; 12].map(f64::to_le_bytes).concat());
    for v in [1.5, -1.0, f64::NAN, f64::INFINITY, 1e300] {
        with(&[x.clone(), reals(v)], &["label of image 0 is not a whole number"]);
    }
    let minus = mat_matrix(8, "y", &[12, 1], 1, &[0xFF; 12]);
    with(&[x.clone(), minus], &["label of image 0 is not a whole number"]);

    says(&set.with(0, 0, |b| b.truncate(100)), &["truncated: 100 bytes"]);
    says(&set.with(0, 0, |b| b.truncate(9000)), &["truncated: the element at byte 128 claims"]);
    says(&set.with(0, 0, |b| b[126..128].copy_from_slice(b"MI")), &["not a little-endian MATLAB 5 file"]);
    let hdf5 = |b: &mut Vec<u8>| {
        b[..10].copy_from_slice(b"MATLAB 7.3");
        b[124..126].copy_from_slice(&[0, 2]);
    };
    says(&set.with(0, 0, hdf5), &["begins with \"MATLAB 7.3", "MATLAB's -v7"]);
    says(&set.with(0, 0, |b| b[132..136].fill(0xFF)), &["claims 4294967295 bytes"]);

    // Compressed: a claim beyond what deflate can do, a stream that is longer or shorter than its claim, and a bomb.
    let zipped = |element: &[u8]| {
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut zlib, element).unwrap();
        let data = zlib.finish().unwrap();
        let head = [15u32.to_le_bytes(), (data.len() as u32).to_le_bytes()].concat();
        [&mat(&[], false)[..], &head, &data].concat()
    };
    let claimed = |size: u32| {
        let mut x = x.clone();
        x[4..8].copy_from_slice(&size.to_le_bytes());
        zipped(&x)
    };
    says(&set.with(0, 0, |b| *b = claimed(u32::MAX)), &["a claim of 4294967295 bytes"]);
    says(&set.with(0, 0, |b| *b = claimed(20_000)), &["X claims 36864 bytes, its element has 20000"]);
    says(&set.with(0, 0, |b| *b = claimed(36_870)), &["truncated data"]);
    says(&set.with(0, 0, |b| *b = zipped(&[x.clone(), vec![0; 9]].concat())), &["more data than claimed"]);
    says(&set.with(0, 0, |b| *b = zipped(&x[..x.len() / 2])), &["truncated data"]);
    let mut inside = mat_matrix(9, "X", &[32, 32, 3, 1 << 18], 2, &chw);
    let tag = inside.len() - chw.len() - 4;
    inside[tag..tag + 4].copy_from_slice(&(3072u32 << 18).to_le_bytes()); // 805 MB within an element of 37 kB
    says(&set.with(0, 0, |b| *b = zipped(&inside)), &["X claims 805306368 bytes"]);
    let zeros = zipped(&[&mat_element(14, &[])[..4], &(1u32 << 20).to_le_bytes(), &vec![0; 1 << 20]].concat());
    says(&set.with(0, 0, |b| *b = zeros), &["array flags"]);
    memory_stays_small();
}

/// Cuts a file at many places and flips bits of it. Nothing may panic; a cut file is refused; where the container has a
/// checksum, what is accepted is what was written.
fn torture(target: &Path, open_at: &Path, has_checksum: bool, every_byte_to: usize) {
    let good = std::fs::read(target).unwrap();
    let checksum = opened(open_at).checksum;
    for len in (0..good.len()).step_by(1 + good.len() / 100) {
        std::fs::write(target, &good[..len]).unwrap();
        refused(open_at);
    }
    let mut accepted = 0;
    let mut bytes = good.clone();
    for at in 0..good.len() {
        let from_end = good.len() - at;
        // One bit of each byte near either end, where headers are, and of some between.
        if at.min(from_end) >= every_byte_to && at % 17 != 0 {
            continue;
        }
        let flip = 1 << (at * 5 % 8);
        bytes[at] ^= flip;
        std::fs::write(target, &bytes).unwrap();
        match open(open_at.to_str().unwrap()) {
            Ok(d) if has_checksum => assert_eq!(d.checksum, checksum, "{flip:#x} of byte {at} went through"),
            Ok(_) => accepted += 1,
            Err(e) => assert!(!e.to_string().contains('\n'), "{e}"),
        }
        bytes[at] ^= flip;
    }
    assert!(has_checksum || accepted > 0, "not one flipped pixel was accepted: the test does not reach the data");
    std::fs::write(target, &good).unwrap();
}

#[test]
fn every_format_survives_cuts_and_flips() {
    let zipped = idx_files(12, 10).into_iter().map(|(n, d)| (format!("{n}.gz"), gzip(&d))).collect();
    for (files, has_checksum, every_byte_to) in [
        (idx_files(12, 10), false, 64),
        (zipped, true, 1000),
        (cifar_bin(10, 1), false, 16),
        (cifar_bin(100, 1), false, 16),
        (fixture("cifar-10-batches-py"), false, 300),
        (fixture("cifar-100-python"), false, 300),
        (svhn_files(1, 1, false), false, 300),
        (svhn_files(1, 1, true), true, 600),
    ] {
        let set = Set::new(files);
        torture(&set.path(0), set.dir.path(), has_checksum, every_byte_to);
    }
    let dir = tempfile::tempdir().unwrap();
    for protocol in 2..=5 {
        for name in ["train", "test"] {
            let from = Path::new(FIXTURES).join(format!("protocol-{protocol}-{name}"));
            std::fs::copy(from, dir.path().join(name)).unwrap();
        }
        torture(&dir.path().join("test"), dir.path(), false, 300);
    }
    for (name, bytes) in [
        ("stored.npz", npz(&npz_members(12, 10), false)),
        ("deflated.npz", npz(&npz_members(12, 10), true)),
        ("cifar.tar.gz", gzip(&tar("x", &cifar_bin(100, 1)))),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        torture(&path, &path, true, 600);
    }
    memory_stays_small();
}
