//! Each format in its real layout is recognised and read back equal.

mod data_support;
use data_support::*;
use sparse_engine::data::{BUILTIN, Dataset, ImageShape, open};
use std::path::Path;

fn check_idx_content(d: &Dataset, train: usize, test: usize) {
    assert_eq!((d.shape, d.family), (ImageShape { c: 1, h: 5, w: 4 }, None));
    assert_eq!(d.classes, 10);
    assert!(content(&d.train) == (images(0, train, 20), labels(0, train, 10)));
    assert!(content(&d.test) == (images(1, test, 20), labels(1, test, 10)));
}

#[test]
fn idx_raw_and_gzip_and_npz_hold_the_same_data() {
    let dir = tempfile::tempdir().unwrap();
    let files = idx_files(30, 7);
    let mut checksums = Vec::new();
    let dotted = |name: &str| name.replace("-idx", ".idx");
    let variants: [(&str, Vec<Named>); 4] = [
        ("raw", files.clone()),
        ("dotted", files.iter().map(|(n, d)| (dotted(n), d.clone())).collect()),
        ("gz", files.iter().map(|(n, d)| (format!("{n}.gz"), gzip(d))).collect()),
        // Compressed or not is told by content, not by the name.
        ("unnamed-gz", files.iter().map(|(n, d)| (n.clone(), gzip(d))).collect()),
    ];
    for (name, files) in variants {
        let folder = dir.path().join(name);
        write_all(&folder, &files);
        let from_folder = opened(&folder);
        assert_eq!(from_folder.kind, "idx");
        check_idx_content(&from_folder, 30, 7);
        checksums.push(from_folder.checksum);
        checksums.push(opened(&folder.join(&files[2].0)).checksum); // one of the files means its folder
    }
    for deflate in [false, true] {
        let path = dir.path().join(format!("{deflate}.npz"));
        std::fs::write(&path, npz(&npz_members(30, 7), deflate)).unwrap();
        let d = opened(&path);
        assert_eq!(d.kind, "npz");
        check_idx_content(&d, 30, 7);
        checksums.push(d.checksum);
    }
    assert_eq!(checksums[0].len(), 64);
    assert!(checksums.iter().all(|c| *c == checksums[0]), "{checksums:?}");

    // The checksum sees one pixel, one label, and where the split lies.
    let differs = |change: &dyn Fn(&mut Vec<Member>)| {
        let mut members = npz_members(30, 7);
        change(&mut members);
        let path = dir.path().join("changed.npz");
        std::fs::write(&path, npz(&members, true)).unwrap();
        assert_ne!(opened(&path).checksum, checksums[0]);
    };
    differs(&|m| *m[0].1.last_mut().unwrap() ^= 1);
    differs(&|m| *m[3].1.last_mut().unwrap() ^= 1);
    differs(&|m| *m = npz_members(29, 8));
}

#[test]
fn idx_is_found_where_downloaders_leave_it_and_raw_wins_over_gzip() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("FashionMNIST/raw");
    write_all(&raw, &idx_files(12, 11));
    let broken: Vec<_> =
        idx_files(12, 11).into_iter().map(|(n, _)| (format!("{n}.gz"), b"\x1f\x8bbroken".to_vec())).collect();
    write_all(&raw, &broken);
    check_idx_content(&opened(dir.path()), 12, 11);
    check_idx_content(&opened(&raw), 12, 11);
}

fn check_cifar(d: &Dataset, family: &str, per_file: &[usize]) {
    let classes = if family == "cifar10" { 10 } else { 100 };
    assert_eq!((d.family, d.classes, d.shape), (Some(family), classes, ImageShape { c: 3, h: 32, w: 32 }));
    let (test, train) = per_file.split_last().unwrap();
    let join = |f: &dyn Fn(usize, usize) -> Vec<u8>| -> Vec<u8> {
        train.iter().enumerate().flat_map(|(i, &n)| f(i, n)).collect()
    };
    let wanted = (join(&|f, n| images(f, n, 3072)), join(&|f, n| labels(f, n, classes)));
    assert!(content(&d.train) == wanted, "training images differ");
    assert!(content(&d.test) == (images(train.len(), *test, 3072), labels(train.len(), *test, classes)));
}

#[test]
fn cifar_binary_files() {
    let dir = tempfile::tempdir().unwrap();
    for (family, classes, below, per_file) in
        [("cifar10", 10, "cifar-10-batches-bin", vec![3; 6]), ("cifar100", 100, "cifar-100-binary", vec![3; 2])]
    {
        let root = dir.path().join(family);
        let files = cifar_bin(classes, 3);
        write_all(&root.join(below), &files);
        for path in [root.clone(), root.join(below), root.join(below).join(&files[0].0)] {
            let d = opened(&path);
            assert_eq!(d.kind, format!("{family}-bin"));
            check_cifar(&d, family, &per_file);
        }
        let archive = dir.path().join(format!("any-name-{family}"));
        std::fs::write(&archive, gzip(&tar(below, &files))).unwrap();
        check_cifar(&opened(&archive), family, &per_file);
    }
}

#[test]
fn cifar_python_archives_as_python_2_wrote_them() {
    let dir = tempfile::tempdir().unwrap();
    for (family, below, per_file) in
        [("cifar10", "cifar-10-batches-py", vec![2, 1, 1, 1, 1, 2]), ("cifar100", "cifar-100-python", vec![3, 2])]
    {
        let files = fixture(below);
        let root = dir.path().join(family);
        write_all(&root.join(below), &files);
        // torchvision leaves the archive beside the folder: the folder is read.
        std::fs::write(root.join(format!("{family}-python.tar.gz")), b"not read").unwrap();
        for path in [root.clone(), root.join(below), root.join(below).join(&files[0].0)] {
            let d = opened(&path);
            assert_eq!(d.kind, format!("{family}-python"));
            check_cifar(&d, family, &per_file);
        }
        let name = below.replace("-batches-py", "-python") + ".tar.gz";
        let alone = dir.path().join(format!("{family}-alone"));
        write_all(&alone, &[(name.clone(), gzip(&tar(below, &files)))]);
        check_cifar(&opened(&alone), family, &per_file);
        check_cifar(&opened(&alone.join(name)), family, &per_file);
        let plain = dir.path().join(format!("{family}.tar"));
        std::fs::write(&plain, tar(below, &files)).unwrap();
        check_cifar(&opened(&plain), family, &per_file);
    }
}

#[test]
fn cifar_pickles_as_numpy_writes_them_today() {
    let dir = tempfile::tempdir().unwrap();
    for protocol in 2..=5 {
        let files = ["train", "test"].map(|name| {
            let path = Path::new(FIXTURES).join(format!("protocol-{protocol}-{name}"));
            (name.to_string(), std::fs::read(path).unwrap())
        });
        let folder = dir.path().join(protocol.to_string());
        write_all(&folder, &files);
        check_cifar(&opened(&folder), "cifar100", &[1, if protocol == 5 { 2 } else { 1 }]);
    }
}

/// A training and a test set of the same members but for the count.
fn npz_of(x: &dyn Fn(usize) -> Vec<u8>, y: &dyn Fn(usize) -> Vec<u8>) -> Vec<u8> {
    npz(&[("x_train", x(6)), ("y_train", y(6)), ("x_test", x(4)), ("y_test", y(4))], true)
}

#[test]
fn npz_channels_and_label_types() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npz");
    let y = |n: usize| npy("|u1", &format!("({n},)"), &labels(0, n, 3));
    // 3 x 5 x 4: the same images in both orders.
    let chw = |n: usize| images(0, n, 60);
    let hwc = |n: usize| -> Vec<u8> {
        let chw = chw(n);
        (0..n * 60).map(|k| chw[k / 60 * 60 + k % 3 * 20 + k % 60 / 3]).collect()
    };
    for (bytes, order) in [(&chw as &dyn Fn(usize) -> Vec<u8>, "3, 5, 4"), (&hwc, "5, 4, 3")] {
        std::fs::write(&path, npz_of(&|n| npy("|u1", &format!("({n}, {order})"), &bytes(n)), &y)).unwrap();
        let d = opened(&path);
        assert_eq!((d.shape, d.classes), (ImageShape { c: 3, h: 5, w: 4 }, 3));
        assert!(content(&d.train) == (chw(6), labels(0, 6, 3)), "{order}");
        assert!(content(&d.test) == (chw(4), labels(0, 4, 3)), "{order}");
    }
    std::fs::write(&path, npz_of(&|n| npy("|u1", &format!("({n}, 3, 5, 3)"), &vec![0; n * 45]), &y)).unwrap();
    assert!(refused(&path).contains("both the second and the last dimension"));
    std::fs::write(&path, npz_of(&|n| npy("|u1", &format!("({n}, 5, 4, 2)"), &vec![0; n * 40]), &y)).unwrap();
    assert!(refused(&path).contains("1 or 3 channels"));

    // Labels of every integer type and byte order, and Keras' column shape.
    let x = |n: usize| npy("|u1", &format!("({n}, 5, 4)"), &images(0, n, 20));
    for (descr, bytes) in
        [("|i1", 1), ("<u2", 2), (">i2", 2), ("<i4", 4), (">u4", 4), ("<i8", 8), (">i8", 8), ("<u8", 8)]
    {
        let wide = |n: usize| -> Vec<u8> {
            let one = |&l: &u8| {
                let mut item = vec![0; bytes];
                item[if descr.starts_with('>') { bytes - 1 } else { 0 }] = l;
                item
            };
            labels(0, n, 3).iter().flat_map(one).collect()
        };
        for shape in ["", " 1"] {
            std::fs::write(&path, npz_of(&x, &|n| npy(descr, &format!("({n},{shape})"), &wide(n)))).unwrap();
            assert_eq!(content(&opened(&path).train).1, labels(0, 6, 3), "{descr}");
        }
    }
    let minus = |n: usize| npy("<i8", &format!("({n},)"), &vec![0xFF; n * 8]);
    std::fs::write(&path, npz_of(&x, &minus)).unwrap();
    assert!(refused(&path).contains("label of image 0 is negative"));
    std::fs::write(&path, npz_of(&x, &|n| npy("<f4", &format!("({n},)"), &vec![0; n * 4]))).unwrap();
    assert!(refused(&path).contains("wanted integer labels"));
    std::fs::write(&path, npz_of(&|n| npy("<f4", &format!("({n}, 5, 4)"), &vec![0; n * 80]), &y)).unwrap();
    assert!(refused(&path).contains("wanted uint8 images"));
}

#[test]
fn several_data_sets_in_one_folder_are_named() {
    let dir = tempfile::tempdir().unwrap();
    write_all(&dir.path().join("cifar-10-batches-bin"), &cifar_bin(10, 1));
    write_all(&dir.path().join("cifar-100-binary"), &cifar_bin(100, 1));
    let message = refused(dir.path());
    assert!(message.contains("cifar10-bin in") && message.contains("cifar100-bin in"), "{message}");

    let dir = tempfile::tempdir().unwrap();
    assert!(refused(dir.path()).contains("no data set found"));
    std::fs::write(dir.path().join("a.npz"), npz(&npz_members(12, 12), false)).unwrap();
    check_idx_content(&opened(dir.path()), 12, 12);
    std::fs::write(dir.path().join("b.npz"), b"").unwrap();
    assert!(refused(dir.path()).contains("several data sets"));
}

#[test]
fn builtin_images() {
    let d = open(BUILTIN).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((d.source.as_str(), d.kind, d.family), (BUILTIN, "npz", None));
    assert_eq!((d.shape, d.classes), (ImageShape { c: 1, h: 28, w: 28 }, 10));
    let histogram = |split: &sparse_engine::data::Split| {
        let mut counts = [0; 10];
        (0..split.len()).for_each(|i| counts[split.label(i) as usize] += 1);
        counts
    };
    assert_eq!(histogram(&d.train), [800; 10]);
    assert_eq!(histogram(&d.test), [200; 10]);
    assert_eq!(d.checksum, "3499d815eceeb3898fd5170b66150fdb79304e4446e544f6b6415efced369150");
}

#[test]
fn full_fashion_mnist_holds_the_builtin_images() {
    let folder = Path::new("/usr/share/datasets/fashion-mnist");
    if !folder.is_dir() {
        drop(std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("skipped: {} is not there (Debian's package dataset-fashion-mnist)\n", folder.display()),
        ));
        return;
    }
    let (full, builtin) = (opened(folder), open(BUILTIN).unwrap_or_else(|e| panic!("{e}")));
    assert_eq!((full.train.len(), full.test.len(), full.classes), (60_000, 10_000, 10));
    let p = full.preprocess(&full.train).unwrap();
    assert!((p.mean[0] - 0.2860).abs() < 5e-5 && (p.std[0] - 0.3530).abs() < 5e-5, "{p:?}"); // widely quoted
    for (all, drawn) in [(&full.train, &builtin.train), (&full.test, &builtin.test)] {
        let set = |split: &sparse_engine::data::Split| -> std::collections::HashSet<(Vec<u8>, u32)> {
            let image = |i| {
                let mut out = vec![0; 784];
                split.image(i, &mut out);
                (out, split.label(i))
            };
            (0..split.len()).map(image).collect()
        };
        assert!(set(drawn).is_subset(&set(all)));
    }
}

#[test]
fn data_made_in_memory() {
    use sparse_engine::data::{PixelOrder, Split};
    let shape = ImageShape { c: 3, h: 2, w: 2 };
    let split =
        |n: usize, label: u32| Split::from_memory(shape, PixelOrder::Hwc, vec![9; n * 12], vec![label; n]).unwrap();
    let d = Dataset::from_splits("toy", split(4, 2), split(2, 1)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((d.classes, d.kind, d.source.as_str()), (3, "memory", "toy"));
    assert!(d.preprocess(&d.train).unwrap_err().to_string().contains("channel 0 has the same value"));
    assert!(Dataset::from_splits("toy", split(4, 2), split(0, 0)).is_err());
    assert!(Dataset::from_splits("toy", split(4, 2), split(2, 3)).is_err());
    assert!(Split::from_memory(shape, PixelOrder::Chw, vec![0; 11], vec![0]).is_err());
    let none = ImageShape { c: 0, h: 2, w: 2 };
    assert!(Split::from_memory(none, PixelOrder::Chw, vec![], vec![0]).is_err());
}
