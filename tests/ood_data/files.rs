//! Folders of image files against Pillow and torchvision (tests/fixtures/data/make_images.py).

use crate::data_support::{FIXTURES, idx_files, refused, write_all};
use crate::{folder, numbers, pixels, set, shape, split};
use safetensors::SafeTensors;
use sparse_engine::data::{ImageSet, ImageShape, PixelOrder, Preprocess, Split};
use std::path::{Path, PathBuf};

fn images() -> PathBuf {
    Path::new(FIXTURES).join("images")
}

/// Expected arrays: name, shape, bytes.
fn expected() -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let file = std::fs::read(images().join("expected.safetensors")).unwrap();
    let arrays = SafeTensors::deserialize(&file).unwrap();
    let mut all: Vec<_> =
        arrays.iter().map(|(name, v)| (name.to_string(), v.shape().to_vec(), v.data().to_vec())).collect();
    all.sort();
    all
}

/// A folder with one file of the fixtures.
fn alone(dir: &tempfile::TempDir, name: &str, shape: ImageShape) -> ImageSet {
    let root = dir.path().join(format!("{name} {shape}"));
    std::fs::create_dir_all(&root).unwrap();
    std::fs::copy(images().join(name), root.join(name)).unwrap();
    folder(&root, shape)
}

/// (largest difference, mean difference).
fn differences(got: &[u8], wanted: &[u8]) -> (u8, f64) {
    assert_eq!(got.len(), wanted.len());
    let each = || got.iter().zip(wanted).map(|(a, b)| a.abs_diff(*b));
    (each().max().unwrap(), each().map(f64::from).sum::<f64>() / got.len() as f64)
}

#[test]
fn png_is_exact_and_jpeg_is_pillows_up_to_rounding() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for (name, dims, hwc) in expected().into_iter().filter(|(name, ..)| !name.contains('/')) {
        let (h, w) = (dims[0], dims[1]);
        let chw: Vec<u8> = (0..3).flat_map(|c| hwc[c..].iter().step_by(3).copied()).collect();
        let (most, mean) = differences(&pixels(&alone(&dir, &name, shape(3, h, w))), &chw);
        println!("{name}: {most} {mean:.3}");
        if name.ends_with(".png") {
            assert_eq!(most, 0, "{name}");
        } else {
            assert!(most <= JPEG_LEVELS && mean <= JPEG_MEAN, "{name}: {most} levels, mean {mean}");
        }
        seen += 1;
    }
    assert_eq!(seen, 16);
}

/// Inverse transform, upsampling and colour conversion each round on their own.
const JPEG_LEVELS: u8 = 3;
const JPEG_MEAN: f64 = 0.5;

#[test]
fn resized_as_torchvision_does() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for (name, dims, wanted) in expected() {
        let Some((file, _)) = name.split_once('/') else { continue };
        let set = alone(&dir, file, shape(dims[0], dims[1], dims[2]));
        let (most, mean) = differences(&pixels(&set), &wanted);
        println!("{name}: {most} {mean:.4}; {}", set.rule());
        // Weights of 16 bits here, of 22 in Pillow.
        assert!(most <= 1 && mean < 0.2, "{name}: {most} levels, mean {mean}");
        seen += 1;
    }
    assert_eq!(seen, 8);
}

#[test]
fn the_rule_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let rule = |c, h, w| alone(&dir, "rgb.png", shape(c, h, w)).rule().to_string();
    assert_eq!(
        rule(3, 224, 224),
        "grey repeated to RGB, alpha dropped; shorter side to 256, bilinear, antialiased, centre 224 x 224; images of \
         224 x 224 keep their pixels"
    );
    assert!(rule(1, 32, 32).contains("shorter side to 32,"), "{}", rule(1, 32, 32));
    assert!(rule(1, 64, 96).contains("scaled to cover 73 x 109,"), "{}", rule(1, 64, 96));
    // Images in memory are never scaled to more than is seen.
    let large = ImageSet::of_split("x", split(shape(1, 9, 9), 2), shape(3, 64, 64)).unwrap();
    assert!(large.rule().contains("shorter side to 64,"), "{}", large.rule());
}

#[test]
fn images_in_memory_are_resized_as_files_are() {
    let dir = tempfile::tempdir().unwrap();
    let source = alone(&dir, "rgb.png", shape(3, 21, 34));
    let bytes = pixels(&source);
    for order in [PixelOrder::Chw, PixelOrder::Hwc] {
        let stored: Vec<u8> = match order {
            PixelOrder::Chw => bytes.clone(),
            PixelOrder::Hwc => (0..bytes.len()).map(|k| bytes[k % 3 * 714 + k / 3]).collect(),
        };
        let split = Split::from_memory(shape(3, 21, 34), order, stored, vec![0]).unwrap();
        for to in [shape(3, 16, 16), shape(1, 32, 32), shape(3, 21, 34), shape(1, 21, 34), shape(3, 7, 50)] {
            let from_memory = ImageSet::of_split("x", split.clone(), to).unwrap();
            assert!(pixels(&from_memory) == pixels(&alone(&dir, "rgb.png", to)), "{to}");
        }
    }
    // Grey to RGB: three times the same, at any size.
    for to in [shape(3, 8, 8), shape(3, 5, 4)] {
        let all = pixels(&ImageSet::of_split("x", split(shape(1, 5, 4), 3), to).unwrap());
        let plane = to.h * to.w;
        assert!(all.chunks_exact(3 * plane).all(|i| i[..plane] == i[plane..2 * plane] && i[..plane] == i[2 * plane..]));
    }
    // A constant image stays constant, whatever the size.
    let one = Split::from_memory(shape(1, 3, 11), PixelOrder::Chw, vec![77; 33], vec![0]).unwrap();
    for to in [shape(1, 64, 64), shape(3, 2, 2), shape(1, 1, 1)] {
        assert!(pixels(&ImageSet::of_split("x", one.clone(), to).unwrap()).iter().all(|&p| p == 77), "{to}");
    }
}

/// Root of a class layout: b/2.png, b/deep/1.PNG, a/z.jpeg, and things that are passed over.
fn class_layout(dir: &Path) {
    let copy = |name: &str, to: &str| {
        let to = dir.join(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(images().join(name), to).unwrap();
    };
    copy("grey.png", "b/2.png");
    copy("rgb.png", "b/deep/1.PNG");
    copy("444.jpg", "a/z.jpeg");
    copy("rgb.png", "a/A.JPEG"); // what it is, its content says
    for other in ["README.txt", ".DS_Store", "a/._z.jpeg", ".hidden/x.png", "b/list.csv"] {
        std::fs::create_dir_all(dir.join(other).parent().unwrap()).unwrap();
        std::fs::write(dir.join(other), b"no image").unwrap();
    }
}

#[test]
fn classes_and_order_are_those_of_the_paths() {
    let dir = tempfile::tempdir().unwrap();
    class_layout(dir.path());
    let to = shape(3, 21, 34);
    let set = folder(dir.path(), to);
    assert_eq!(set.name(), format!("image folder {}", dir.path().display()));
    assert_eq!((set.len(), set.class_names()), (4, ["a".to_string(), "b".to_string()].as_slice()));
    assert_eq!((0..4).map(|i| set.label(i)).collect::<Vec<_>>(), [Some(0), Some(0), Some(1), Some(1)]);
    let one = tempfile::tempdir().unwrap();
    let wanted: Vec<u8> =
        ["rgb.png", "444.jpg", "grey.png", "rgb.png"].iter().flat_map(|n| pixels(&alone(&one, n, to))).collect();
    assert!(pixels(&set) == wanted);

    // An image in the root: no classes.
    std::fs::copy(images().join("grey.jpg"), dir.path().join("aa.jpg")).unwrap();
    let set = folder(dir.path(), to);
    assert_eq!((set.len(), set.has_labels(), set.class_names().len()), (5, false, 0));
    assert!(pixels(&set)[..2 * 2142] == wanted[..2 * 2142] && pixels(&set)[3 * 2142..] == wanted[2 * 2142..]);
    std::fs::remove_file(dir.path().join("aa.jpg")).unwrap();

    // A class without images would shift the others.
    for empty in ["0", "aa", "c"] {
        std::fs::create_dir(dir.path().join(empty)).unwrap();
        let error = ImageSet::open(dir.path().to_str().unwrap(), to).err().unwrap().to_string();
        assert!(error.contains(&format!("/{empty}: a class without an image")), "{error}");
        std::fs::remove_dir(dir.path().join(empty)).unwrap();
    }
}

#[test]
fn links_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    class_layout(&dir.path().join("real"));
    let linked = dir.path().join("linked");
    std::os::unix::fs::symlink(dir.path().join("real"), &linked).unwrap();
    let to = shape(1, 8, 8);
    assert!(pixels(&folder(&linked, to)) == pixels(&folder(&dir.path().join("real"), to)));
    let flat = dir.path().join("flat");
    std::fs::create_dir(&flat).unwrap();
    std::os::unix::fs::symlink(images().join("rgb.png"), flat.join("x.png")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("real/a"), flat.join("y")).unwrap();
    assert_eq!(folder(&flat, to).len(), 3);
}

#[test]
fn the_same_batches_for_any_threads_and_batch() {
    let dir = tempfile::tempdir().unwrap();
    class_layout(dir.path());
    for images in [folder(dir.path(), shape(3, 16, 16)), set(shape(3, 6, 7), 23)] {
        let bits = |batch, threads| numbers(&images, batch, threads).iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let reference = bits(1, 0);
        assert_eq!(reference.len(), images.len() * images.shape().numel());
        for (batch, threads) in [(1, 3), (2, 1), (3, 2), (usize::MAX, 2), (5, 16)] {
            assert!(bits(batch, threads) == reference, "{batch} {threads}");
        }
        let preprocess = Preprocess { mean: vec![0.5, 0.25, 0.0], std: vec![0.5, 2.0, 0.125] };
        let batches: Vec<_> = images.batches(3, &preprocess, 1).unwrap().map(Result::unwrap).collect();
        assert_eq!(batches.iter().map(|b| b.n).sum::<usize>(), images.len());
        assert_eq!(batches.last().unwrap().n, images.len() % 3);
        let labels: Vec<u32> = batches.iter().flat_map(|b| b.labels.clone()).collect();
        assert_eq!(labels, (0..images.len()).map(|i| images.label(i).unwrap()).collect::<Vec<_>>());
        // Normalised as the training loader does: each channel of the first pixel.
        let (plane, first) = (images.shape().h * images.shape().w, &batches[0].images);
        for c in 0..3 {
            let p = (f32::from_bits(reference[c * plane]) * 255.0).round();
            let wanted = ((f64::from(p) / 255.0 - preprocess.mean[c]) / preprocess.std[c]) as f32;
            assert_eq!(first[c * plane], wanted);
        }
        assert_eq!(images.batches(0, &preprocess, 1).err().unwrap().exit_code(), 2);
        let grey = Preprocess { mean: vec![0.0], std: vec![1.0] };
        assert_eq!(images.batches(1, &grey, 1).err().unwrap().exit_code(), 2);
    }
}

#[test]
fn a_training_layout_gives_its_held_out_images_and_is_not_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    class_layout(&dir.path().join("train"));
    class_layout(&dir.path().join("val"));
    std::fs::remove_file(dir.path().join("val/a/A.JPEG")).unwrap();
    let set = folder(dir.path(), shape(3, 8, 8));
    assert_eq!((set.len(), set.class_names().len()), (3, 2));
    assert!(set.name().ends_with("/val"), "{}", set.name());
    for path in [dir.path().to_path_buf(), dir.path().join("val"), dir.path().join("val/b")] {
        let message = refused(&path);
        assert!(message.contains("can be evaluated, not yet trained on"), "{message}");
    }
    // A data set beside images is that data set.
    write_all(dir.path(), &idx_files(12, 10));
    assert!(folder(dir.path(), shape(1, 5, 4)).name().starts_with("idx "));
}

#[test]
fn other_paths_are_what_open_knows() {
    let dir = tempfile::tempdir().unwrap();
    write_all(dir.path(), &idx_files(12, 10));
    let path = dir.path().to_str().unwrap();
    let set = ImageSet::open(path, shape(1, 5, 4)).unwrap();
    assert_eq!((set.len(), set.name()), (10, format!("idx {path}, test split").as_str()));
    assert!(pixels(&set) == crate::data_support::images(1, 10, 20));
    let builtin = ImageSet::open("builtin:fashion-mnist", shape(3, 32, 32)).unwrap();
    assert_eq!((builtin.len(), builtin.label(0).is_some()), (2000, true));
}
