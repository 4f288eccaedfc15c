//! Damaged and hostile image files and folders: an error that names the file, or an image; never a panic, and no memory for
//! what a header merely claims.

use crate::data_support::FIXTURES;
use crate::{MEMORY, folder, plain, shape};
use proptest::prelude::*;
use sparse_engine::data::{ImageSet, ImageShape};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// All tests of this program together stay below this, whatever the headers claim.
const MOST_BYTES: usize = 200 << 20;

const TO: ImageShape = ImageShape { c: 3, h: 8, w: 8 };

fn memory_stays_small() {
    let peak = MEMORY.peak_usage();
    assert!(peak < MOST_BYTES, "{peak} bytes were allocated at once");
}

/// A folder with one image file.
struct One {
    _dir: tempfile::TempDir,
    path: PathBuf,
    set: ImageSet,
}

impl One {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, b"").unwrap();
        let set = folder(dir.path(), TO);
        One { _dir: dir, path, set }
    }

    /// Decodes `bytes`; the message where they are refused.
    fn decode(&self, bytes: &[u8]) -> Option<String> {
        std::fs::remove_file(&self.path).unwrap(); // written anew: ext4 flushes a file that is cut and written again
        std::fs::write(&self.path, bytes).unwrap();
        self.error()
    }

    fn error(&self) -> Option<String> {
        let batches: Vec<_> = self.set.batches(1, &plain(3), 0).unwrap().collect();
        assert_eq!(batches.len(), 1);
        let error = batches.into_iter().next().unwrap().err()?;
        assert_eq!(error.exit_code(), 1);
        let message = error.to_string();
        assert!(message.contains(self.path.to_str().unwrap()), "{message} does not name {}", self.path.display());
        assert!(!message.contains('\n'), "{message}");
        Some(message)
    }

    #[track_caller]
    fn says(&self, bytes: &[u8], wanted: &str) {
        let message = self.decode(bytes).unwrap_or_else(|| panic!("accepted; wanted: {wanted}"));
        assert!(message.contains(wanted), "{message:?} does not say {wanted:?}");
    }
}

fn fixtures() -> Vec<(String, Vec<u8>)> {
    let all = crate::data_support::fixture("images");
    let images: Vec<_> = all.into_iter().filter(|(n, _)| n.ends_with("png") || n.ends_with("jpg")).collect();
    assert_eq!(images.len(), 18);
    images
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(FIXTURES).join("images").join(name)).unwrap()
}

#[test]
fn cut_files_are_refused() {
    let one = One::new("x.jpg");
    for (name, good) in fixtures() {
        assert_eq!(one.decode(&good), None, "{name}");
        for len in (0..good.len()).step_by(1 + good.len() / 60).chain([good.len() - 1]) {
            assert!(one.decode(&good[..len]).is_some(), "{name} cut to {len} of {} bytes was accepted", good.len());
        }
    }
    memory_stays_small();
}

#[test]
fn every_flipped_byte_near_the_start_and_many_later() {
    let one = One::new("x.png");
    for (name, good) in fixtures() {
        let (mut refused, mut bytes) = (0, good.clone());
        for at in (0..good.len()).filter(|at| *at < 300 || at % 11 == 0) {
            let flip = 1 << (at * 5 % 8);
            bytes[at] ^= flip;
            refused += usize::from(one.decode(&bytes).is_some());
            bytes[at] ^= flip;
        }
        // PNG has checksums throughout.
        assert!(!name.ends_with("png") || refused >= good.len().min(300) * 9 / 10, "{name}: {refused} refused");
    }
    memory_stays_small();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_jpegs_and_pngs_do_not_panic(
        which in 0usize..18,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        doubled in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let one = One::new("x.png");
        let mut bytes = fixtures().swap_remove(which).1;
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(at) = doubled {
            let at = at.index(bytes.len());
            let tail = bytes[at..].to_vec();
            bytes.extend(tail);
        }
        if let Some(len) = cut {
            bytes.truncate(len.index(bytes.len()));
        }
        one.decode(&bytes);
    }
}

fn png(w: u32, h: u32, depth: u8, colour: u8, packed: &[u8]) -> Vec<u8> {
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8], data: &[u8]| {
        let body = [kind, data].concat();
        let mut crc = flate2::Crc::new();
        crc.update(&body);
        out.extend((data.len() as u32).to_be_bytes());
        out.extend(body);
        out.extend(crc.sum().to_be_bytes());
    };
    chunk(b"IHDR", &[&w.to_be_bytes()[..], &h.to_be_bytes(), &[depth, colour, 0, 0, 0]].concat());
    chunk(b"IDAT", packed);
    chunk(b"IEND", b"");
    out
}

fn zlib(data: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut out = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    out.write_all(data).unwrap();
    out.finish().unwrap()
}

#[test]
fn claims_and_bombs() {
    let one = One::new("x.png");
    assert_eq!(one.decode(&png(2, 1, 8, 0, &zlib(&[0, 10, 20]))), None);
    one.says(&png(8192, 8192, 8, 2, &zlib(&[0; 100])), "more than its bytes can hold");
    one.says(&png(20_000, 10_000, 8, 2, &zlib(&[0; 100])), "20000 x 10000 pixels: at most 134217728");
    one.says(&png(1 << 30, 1 << 30, 8, 2, &zlib(&[0; 100])), "limits are exceeded");
    one.says(&png(100, 100, 8, 2, &zlib(&[0; 100])), "PNG");
    one.says(&png(0, 5, 8, 2, &zlib(&[0; 100])), "PNG");
    one.says(&png(2, 2, 8, 5, &zlib(&[0; 100])), "PNG");
    // 64 MB of zeros for an image of 2 x 1: what follows the image is not unpacked into memory.
    one.decode(&png(2, 1, 8, 0, &zlib(&vec![0; 64 << 20])));
    let mut jpeg = fixture("444.jpg");
    let sof = jpeg.windows(2).position(|w| w == [0xFF, 0xC0]).unwrap();
    jpeg[sof + 5..sof + 9].fill(0xFF);
    one.says(&jpeg, "at most 134217728 are supported");
    jpeg[sof + 5..sof + 9].copy_from_slice(&[0x20, 0, 0x20, 0]);
    one.says(&jpeg, "claims 8192 x 8192 pixels, more than its bytes can hold");
    jpeg[sof + 5..sof + 9].copy_from_slice(&[0, 0, 0, 9]);
    assert!(one.decode(&jpeg).is_some());
    for bytes in [b"".as_slice(), b"\xff", b"\xff\xd8\xff", b"\x89PNG", b"GIF89a", b"RIFF....WEBP", b"hello"] {
        assert!(one.decode(bytes).is_some());
    }
    one.says(b"", "an empty file");
    one.says(b"GIF89a", "neither JPEG nor PNG (it begins with 47494638)");
    memory_stays_small();
}

#[test]
fn files_that_change_after_they_were_listed() {
    let one = One::new("x.png");
    std::fs::remove_file(&one.path).unwrap();
    assert!(one.error().unwrap().contains("cannot open"));
    std::fs::create_dir(&one.path).unwrap();
    assert!(one.error().unwrap().contains("not a regular file"));
    std::fs::remove_dir(&one.path).unwrap();
    let sparse = std::fs::File::create(&one.path).unwrap();
    sparse.set_len(1 << 40).unwrap();
    assert!(one.error().unwrap().contains("at most 268435456 bytes"));
    memory_stays_small();
}

#[test]
fn one_bad_file_is_an_error_of_its_batch_with_threads_too() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..10 {
        let bytes = if i == 5 { b"bad".to_vec() } else { fixture("grey.png") };
        std::fs::write(dir.path().join(format!("{i}.png")), bytes).unwrap();
    }
    for threads in [0, 1, 4] {
        let results: Vec<_> = folder(dir.path(), TO).batches(2, &plain(3), threads).unwrap().collect();
        assert_eq!(results.iter().map(|r| r.is_ok()).collect::<Vec<_>>(), [true, true, false, true, true]);
        assert!(results[2].as_ref().unwrap_err().to_string().contains("5.png"));
    }
}

#[test]
fn folders_that_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |wanted: &[&str]| {
        let error = ImageSet::open(dir.path().to_str().unwrap(), TO).err().unwrap();
        assert_eq!(error.exit_code(), 1);
        let message = error.to_string();
        assert!(!message.contains('\n') && wanted.iter().all(|w| message.contains(w)), "{message:?}: {wanted:?}");
    };
    refused(&["no images in this folder", "JPEG or PNG", "train-images-idx3-ubyte"]);
    std::fs::write(dir.path().join("list.txt"), "x").unwrap();
    refused(&["no images in this folder"]);
    let image = dir.path().join("x.png");
    std::fs::write(&image, fixture("grey.png")).unwrap();
    assert_eq!(folder(dir.path(), TO).len(), 1);

    std::fs::write(dir.path().join("y.WebP"), b"").unwrap();
    refused(&["y.WebP", "wanted JPEG or PNG"]);
    std::fs::remove_file(dir.path().join("y.WebP")).unwrap();

    std::fs::create_dir(dir.path().join("a")).unwrap();
    symlink("..", dir.path().join("a/up")).unwrap();
    refused(&["a/up", "loop"]);
    std::fs::remove_file(dir.path().join("a/up")).unwrap();
    symlink("nowhere", dir.path().join("a/b.png")).unwrap();
    refused(&["a/b.png", "cannot list"]);
    std::fs::remove_file(dir.path().join("a/b.png")).unwrap();

    // A named pipe would wait for a writer.
    let pipe = dir.path().join("a/pipe.png");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    refused(&["pipe.png", "not a regular file"]);
    std::fs::remove_file(pipe).unwrap();

    // Links that fork: 2 to the 40th paths.
    for i in 0..40 {
        std::fs::create_dir(dir.path().join(format!("f{i:02}"))).unwrap();
    }
    for i in 0..40 {
        for name in ["l", "r"] {
            let to = format!("../f{:02}", (i + 1) % 40);
            symlink(to, dir.path().join(format!("f{i:02}/{name}"))).unwrap();
        }
    }
    refused(&["more than 16 folders deep"]);
    memory_stays_small();
}

#[test]
fn extreme_proportions_cost_what_they_show() {
    let one = One::new("x.png");
    for (w, h) in [(60_000, 1), (1, 60_000), (1, 1)] {
        let rows = vec![0; h as usize * (w as usize + 1)];
        assert_eq!(one.decode(&png(w, h, 8, 0, &zlib(&rows))), None, "{w} x {h}");
    }
    let large = folder(one.path.parent().unwrap(), shape(1, 300, 200));
    assert_eq!(large.batches(1, &plain(1), 0).unwrap().filter(|b| b.is_ok()).count(), 1);
    memory_stays_small();
}
