use crate::data_support::FIXTURES;
use crate::{folder, pixels, set, shape};
use sparse_engine::data::{class_subset, classes_by_name, read_class_list};
use std::path::Path;

/// Folders `names` with an image each, different ones for different names.
fn folders(root: &Path, names: &[&str]) {
    for name in names {
        std::fs::create_dir_all(root.join(name)).unwrap();
        let file = if name.ends_with('1') { "rgb.png" } else { "grey.png" };
        std::fs::copy(Path::new(FIXTURES).join("images").join(file), root.join(name).join("x.png")).unwrap();
    }
}

#[test]
fn by_the_names_of_folders() {
    let dir = tempfile::tempdir().unwrap();
    let [inside, outside, other] = ["in", "out", "other"].map(|n| dir.path().join(n));
    folders(&inside, &["n01", "n02", "n03", "n11"]);
    folders(&outside, &["n11", "n02"]);
    folders(&other, &["n02", "n09", "m"]);
    let to = shape(3, 21, 34);
    let [all, outside, other] = [&inside, &outside, &other].map(|p| folder(p, to));
    let part = class_subset(&all, &outside, None, 4).unwrap();
    assert_eq!((part.len(), part.position(0), part.position(1)), (2, 1, 3));
    // Labels stay those of the whole set.
    assert_eq!([part.label(0), part.label(1)], [Some(1), Some(3)]);
    assert!(part.name().ends_with("/in, 2 classes"), "{}", part.name());
    let (whole, size) = (pixels(&all), to.numel());
    assert!(pixels(&part) == [&whole[size..2 * size], &whole[3 * size..]].concat());

    let error = class_subset(&all, &other, None, 4).err().unwrap().to_string();
    assert!(error.contains("2 of 3 classes are not among the 4") && error.contains("m, n09"), "{error}");
    let error = class_subset(&set(shape(1, 2, 2), 9), &outside, None, 5).err().unwrap().to_string();
    assert!(error.contains("toy: no class folders") && error.contains("one a line"), "{error}");
    let names = |v: &[&str]| v.iter().map(|s| s.to_string()).collect::<Vec<_>>();
    assert_eq!(classes_by_name(&names(&["c", "a", "c"]), &names(&["a", "b", "c"])).unwrap(), [0, 2]);
}

#[test]
fn by_a_list_of_indices() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("list.txt");
    let (inside, outside) = (set(shape(1, 2, 2), 12), set(shape(1, 2, 2), 3)); // labels i % 5
    let write = |text: &[u8]| std::fs::write(&path, text).unwrap();
    write(b"4\r\n\n 1 \n");
    let part = class_subset(&inside, &outside, Some(&path), 5).unwrap();
    assert_eq!((0..part.len()).map(|i| part.position(i)).collect::<Vec<_>>(), [1, 4, 6, 9, 11]);
    assert_eq!(read_class_list(&path, 5).unwrap(), [1, 4]);
    // Restricted twice: what both allow.
    assert_eq!(part.of_classes(&[4, 0]).unwrap().len(), 2);
    assert!(part.of_classes(&[0]).err().unwrap().to_string().contains("none of its 5 images"));
    for (text, wanted) in [
        (b"1\n5\n".as_slice(), "line 2: \"5\": wanted a class index of 0 to 4"),
        (b"-1", "line 1: \"-1\""),
        (b"1\n2\n1", "line 3: \"1\" is there twice"),
        (b"n01440764", "wanted a class index"),
        (b"", "no class index in it"),
        (b"\xff\xfe", "not a text file"),
        (&[b'\n'; (1 << 20) + 1], "more than 1048576 bytes"),
    ] {
        write(text);
        let error = class_subset(&inside, &outside, Some(&path), 5).err().unwrap();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains(wanted) && error.to_string().contains("list.txt"), "{error}");
    }
    assert!(read_class_list(dir.path(), 5).is_err());
    assert!(read_class_list(&dir.path().join("none"), 5).is_err());
    write(b"0");
    assert!(read_class_list(&path, 0).is_err());
}
