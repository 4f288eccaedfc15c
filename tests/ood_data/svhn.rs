use crate::data_support::*;
use crate::{folder, pixels, shape};
use sparse_engine::data::{Dataset, ImageSet, published};
use std::path::Path;

fn check(d: &Dataset, train: usize, test: usize) {
    assert_eq!((d.kind, d.family, d.classes, d.shape), ("svhn-mat", Some("svhn"), 10, shape(3, 32, 32)));
    assert!(content(&d.train) == (images(0, train, 3072), labels(0, train, 10)), "training images differ");
    assert!(content(&d.test) == (images(1, test, 3072), labels(1, test, 10)), "test images differ");
}

#[test]
fn a_folder_of_both_files_is_a_data_set() {
    let dir = tempfile::tempdir().unwrap();
    let mut sums = Vec::new();
    for compress in [false, true] {
        let root = dir.path().join(compress.to_string());
        write_all(&root, &svhn_files(11, 4, compress));
        for path in [root.clone(), root.join("test_32x32.mat")] {
            let d = opened(&path);
            check(&d, 11, 4);
            assert_eq!(d.preprocess(&d.train).unwrap(), published("svhn").unwrap());
            sums.push(d.checksum);
        }
    }
    assert!(sums.iter().all(|s| *s == sums[0]));
}

#[test]
fn files_that_scipy_wrote() {
    let dir = tempfile::tempdir().unwrap();
    for kind in ["v5", "v5z"] {
        let root = dir.path().join(kind);
        std::fs::create_dir(&root).unwrap();
        for name in ["train", "test"] {
            let from = Path::new(FIXTURES).join(format!("svhn/{kind}-{name}.mat"));
            std::fs::copy(from, root.join(format!("{name}_32x32.mat"))).unwrap();
        }
        check(&opened(&root), 3, 2);
    }
}

#[test]
fn a_single_file_is_a_set_of_images() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("any name.mat");
    std::fs::write(&path, mat(&svhn(2, 5), true)).unwrap();
    let set = folder(&path, shape(3, 32, 32));
    assert_eq!(set.name(), format!("svhn-mat {}", path.display()));
    assert!(set.rule().starts_with("none"), "{}", set.rule());
    assert!(pixels(&set) == images(2, 5, 3072));
    let wanted: Vec<Option<u32>> = labels(2, 5, 10).into_iter().map(|l| Some(u32::from(l))).collect();
    assert_eq!((0..5).map(|i| set.label(i)).collect::<Vec<_>>(), wanted);
    // It is no training set: the other file is named, and what can be done.
    let alone = dir.path().join("alone");
    write_all(&alone, &svhn_files(2, 2, false)[1..]);
    let message = refused(&alone);
    assert!(message.contains("train_32x32.mat") && message.contains("no such file"), "{message}");
    assert_eq!(folder(&alone.join("test_32x32.mat"), shape(3, 32, 32)).len(), 2);
    // Of a data set, the images are those of the test split.
    write_all(&alone, &svhn_files(2, 4, false));
    let set = folder(&alone, shape(3, 32, 32));
    assert_eq!((set.len(), set.name()), (4, format!("svhn-mat {}, test split", alone.display()).as_str()));
}

#[test]
fn numbers_of_every_type_and_odd_but_lawful_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.mat");
    let [x, _] = svhn(1, 3);
    let l: Vec<u8> = labels(1, 3, 10).into_iter().map(|l| if l == 0 { 10 } else { l }).collect();
    let wide = |bytes: usize| l.iter().flat_map(|&l| u64::from(l).to_le_bytes()[..bytes].to_vec()).collect::<Vec<u8>>();
    let doubles: Vec<u8> = l.iter().flat_map(|&l| f64::from(l).to_le_bytes()).collect();
    let singles: Vec<u8> = l.iter().flat_map(|&l| f32::from(l).to_le_bytes()).collect();
    let stored = [
        (1, wide(1)),
        (2, wide(1)),
        (3, wide(2)),
        (4, wide(2)),
        (5, wide(4)),
        (6, wide(4)),
        (12, wide(8)),
        (13, wide(8)),
        (7, singles),
        (9, doubles),
    ];
    for (kind, data) in stored {
        for dims in [[3, 1], [1, 3]] {
            let y = mat_matrix(6, "y", &dims, kind, &data);
            // Another variable in front, a comment-like element between: both are passed over.
            let other = mat_matrix(6, "xy", &[1, 1], 9, &[0; 8]);
            std::fs::write(&path, mat(&[other, y, mat_element(2, &[1, 2, 3]), x.clone()], false)).unwrap();
            let set = folder(&path, shape(3, 32, 32));
            assert!(pixels(&set) == images(1, 3, 3072), "type {kind}");
            assert_eq!(set.label(2), Some(u32::from(labels(1, 3, 10)[2])), "type {kind}");
        }
    }
    // One image: MATLAB drops the last dimension.
    let one = mat_matrix(9, "X", &[32, 32, 3], 2, &images(0, 1, 3072));
    std::fs::write(&path, mat(&[one, mat_matrix(6, "y", &[1, 1], 2, &[7])], true)).unwrap();
    assert_eq!(folder(&path, shape(3, 32, 32)).label(0), Some(7));
}

#[test]
fn other_shapes_and_channels() {
    let dir = tempfile::tempdir().unwrap();
    write_all(dir.path(), &svhn_files(2, 3, true));
    let path = dir.path().to_str().unwrap();
    let grey = ImageSet::open(path, shape(1, 28, 28)).unwrap();
    assert_eq!((grey.len(), pixels(&grey).len()), (3, 3 * 784));
    assert!(grey.rule().contains("luma") && grey.rule().contains("shorter side to 28"), "{}", grey.rule());
    let error = ImageSet::open(path, shape(4, 32, 32)).err().unwrap().to_string();
    assert!(error.contains("3 channel(s) for a network of 4"), "{error}");
    assert_eq!(ImageSet::open(path, shape(3, 0, 32)).err().unwrap().exit_code(), 2);
}
