//! Folders of JPEG and PNG files, nested ones too, as torchvision's ImageFolder lays them out: `root/class/.../file`.
//!
//! In order of path, component by component, compared as bytes: classes in order of name, the same on every machine. Links
//! are followed. Hidden files and folders (a leading dot) and files of other kinds are left out; images of a kind that is
//! not read are an error, because a part of a set is another set.

use super::files::WANTED;
use super::image_file::{self, Rgb};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use walkdir::{DirEntry, WalkDir};

/// Folders between the root and an image.
const MAX_DEPTH: usize = 16;
/// ImageNet-22k has 14 million images.
const MAX_IMAGES: usize = 1 << 24;
/// Largest file that is read.
const MAX_FILE: u64 = 256 << 20;

const READ: [&str; 3] = ["jpg", "jpeg", "png"];
const NOT_READ: [&str; 9] = ["bmp", "gif", "tif", "tiff", "webp", "ppm", "pgm", "avif", "heic"];

/// The files of a folder; each is decoded when it is asked for.
pub(super) struct ImageFolder {
    root: PathBuf,
    /// Below the root.
    files: Vec<PathBuf>,
    /// Class of each file, where every image lies in a folder of the root; else none.
    pub labels: Vec<u32>,
    /// Names of these folders, in order.
    pub classes: Vec<String>,
}

fn walk(root: &Path, depth: usize) -> impl Iterator<Item = walkdir::Result<DirEntry>> {
    let hidden = |e: &DirEntry| e.depth() > 0 && e.file_name().as_encoded_bytes().starts_with(b".");
    WalkDir::new(root).follow_links(true).max_depth(depth).into_iter().filter_entry(move |e| !hidden(e))
}

fn is_kind(path: &Path, kinds: &[&str]) -> bool {
    path.extension().and_then(|e| e.to_str()).is_some_and(|e| kinds.iter().any(|k| e.eq_ignore_ascii_case(k)))
}

/// Whether there is an image among the first entries: a guess, for a better message.
pub(super) fn holds_images(root: &Path) -> bool {
    walk(root, 4).take(10_000).flatten().any(|e| e.file_type().is_file() && is_kind(e.path(), &READ))
}

impl ImageFolder {
    /// Lists the images below `root`. Where it has a folder `train` beside `test` or `val`, as training sets are laid out,
    /// the images are those of `test`, else of `val`.
    pub(super) fn open(root: &Path) -> Result<Self> {
        let part = ["test", "val"].map(|name| root.join(name)).into_iter().find(|p| p.is_dir());
        let root = part.filter(|_| root.join("train").is_dir()).unwrap_or_else(|| root.to_path_buf());
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        for entry in walk(&root, MAX_DEPTH + 1) {
            let entry = entry.map_err(|e| fault(&root, e))?;
            let path = entry.path();
            let below = path.strip_prefix(&root).unwrap_or(path).to_path_buf();
            if entry.file_type().is_dir() {
                if entry.depth() > MAX_DEPTH {
                    return Err(Error::data(path, format!("more than {MAX_DEPTH} folders deep")));
                }
                if entry.depth() == 1 {
                    folders.push(below);
                }
            } else if is_kind(path, &NOT_READ) {
                return Err(Error::data(path, "an image of a kind that is not read: wanted JPEG or PNG; convert it"));
            } else if is_kind(path, &READ) {
                if !entry.file_type().is_file() {
                    return Err(Error::data(path, "not a regular file"));
                }
                if files.len() == MAX_IMAGES {
                    return Err(Error::data(&root, format!("more than {MAX_IMAGES} images")));
                }
                files.push(below);
            }
        }
        if files.is_empty() {
            let what = format!("no images in this folder: wanted JPEG or PNG files, at any depth; {WANTED}");
            return Err(Error::data(&root, what));
        }
        files.sort();
        folders.sort();
        let (labels, classes) = classes(&root, &files, &folders)?;
        Ok(ImageFolder { root, files, labels, classes })
    }

    /// The folder that the images are in.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// File `i`.
    pub(super) fn path(&self, i: usize) -> PathBuf {
        self.root.join(&self.files[i])
    }

    /// Reads and decodes file `i`.
    pub(super) fn image(&self, i: usize) -> Result<Rgb> {
        let path = self.path(i);
        let meta = std::fs::metadata(&path).map_err(Error::io(&path, "cannot open"))?;
        if !meta.is_file() || meta.len() > MAX_FILE {
            let what = format!("not a regular file of at most {MAX_FILE} bytes");
            return Err(Error::data(&path, what));
        }
        let file = std::fs::read(&path).map_err(Error::io(&path, "cannot read"))?;
        image_file::decode(&file).map_err(|what| Error::data(&path, what))
    }
}

/// Label of each file and names of the classes; none where an image lies in the root itself.
fn classes(root: &Path, files: &[PathBuf], folders: &[PathBuf]) -> Result<(Vec<u32>, Vec<String>)> {
    let mut labels = Vec::with_capacity(files.len());
    let mut class = 0;
    for file in files {
        let Some(folder) = file.parent().and_then(|p| p.components().next()) else { return Ok(Default::default()) };
        // Both are sorted, so a folder that is passed over has no image.
        while folders[class].as_os_str() != folder.as_os_str() {
            class += 1;
            if labels.last().is_none_or(|&l| l as usize + 1 != class) {
                return Err(Error::data(root.join(&folders[class - 1]), NO_IMAGE));
            }
        }
        labels.push(class as u32);
    }
    match folders.get(class + 1) {
        Some(empty) => Err(Error::data(root.join(empty), NO_IMAGE)),
        None => Ok((labels, folders.iter().map(|f| f.to_string_lossy().into_owned()).collect())),
    }
}

const NO_IMAGE: &str = "a class without an image, which would shift the classes after it: remove or fill this folder";

fn fault(root: &Path, e: walkdir::Error) -> Error {
    let path = e.path().unwrap_or(root).to_path_buf();
    match e.loop_ancestor() {
        Some(back) => Error::data(path, format!("a symbolic link back to {}: a loop", back.display())),
        None => Error::io(path, "cannot list")(e.into_io_error().unwrap_or_else(|| std::io::ErrorKind::Other.into())),
    }
}
