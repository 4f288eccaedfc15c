//! From a path to a reader: what a file or folder holds is recognised by magic bytes and by the names a format fixes.

use super::{BUILTIN, Bytes, Dataset, builtin, cifar, cifar_python, idx, image_folder, npz, svhn};
use crate::error::{Error, Result};
use flate2::read::MultiGzDecoder;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, sink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The formats of several files, told by their files' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Idx,
    Cifar10Bin,
    Cifar100Bin,
    Cifar10Python,
    Cifar100Python,
    Svhn,
}

/// The kinds that are also read from a tar archive.
const CIFAR: [Kind; 4] = [Kind::Cifar10Bin, Kind::Cifar100Bin, Kind::Cifar10Python, Kind::Cifar100Python];
const KINDS: [Kind; 6] = [Kind::Idx, CIFAR[0], CIFAR[1], CIFAR[2], CIFAR[3], Kind::Svhn];

/// Folders below the given one in which the usual downloaders leave the files.
const BELOW: [&str; 8] = [
    "",
    "raw",
    "MNIST/raw",
    "FashionMNIST/raw",
    "cifar-10-batches-bin",
    "cifar-10-batches-py",
    "cifar-100-binary",
    "cifar-100-python",
];

const ARCHIVES: [&str; 4] =
    ["cifar-10-python.tar.gz", "cifar-100-python.tar.gz", "cifar-10-binary.tar.gz", "cifar-100-binary.tar.gz"];

pub(super) const WANTED: &str = "wanted IDX files (train-images-idx3-ubyte[.gz], ...), CIFAR-10 or CIFAR-100 (binary \
     files, Python batches or their .tar.gz), SVHN (train_32x32.mat, test_32x32.mat) or an .npz with x_train, y_train, \
     x_test, y_test";

/// Largest file taken out of an archive, and most bytes an archive may unpack to: a decompression bomb ends there.
/// CIFAR's largest file is CIFAR-100's "train", 155 MB; each archive holds 186 MB.
const MAX_MEMBER: u64 = 256 << 20;
const MAX_UNPACKED: u64 = 512 << 20;

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Idx => "idx",
            Kind::Cifar10Bin => "cifar10-bin",
            Kind::Cifar100Bin => "cifar100-bin",
            Kind::Cifar10Python => "cifar10-python",
            Kind::Cifar100Python => "cifar100-python",
            Kind::Svhn => "svhn-mat",
        }
    }

    /// Names of its files, each one enough to tell the kind.
    fn files(self) -> Vec<String> {
        let batches = |suffix: &str| {
            let train = (1..=5).map(|i| format!("data_batch_{i}{suffix}"));
            train.chain([format!("test_batch{suffix}")]).collect()
        };
        match self {
            Kind::Idx => idx::STEMS.iter().flat_map(|stem| idx::names(stem)).collect(),
            Kind::Cifar10Bin => batches(".bin"),
            Kind::Cifar100Bin => vec!["train.bin".into(), "test.bin".into()],
            Kind::Cifar10Python => batches(""),
            Kind::Cifar100Python => vec!["train".into(), "test".into()],
            Kind::Svhn => svhn::FILES.map(String::from).to_vec(),
        }
    }

    fn read(self, source: &Path, files: &Files) -> Result<Dataset> {
        match self {
            Kind::Idx => idx::read(source, files),
            Kind::Cifar10Bin | Kind::Cifar100Bin => cifar::read(source, files, self),
            Kind::Cifar10Python | Kind::Cifar100Python => cifar_python::read(source, files, self),
            Kind::Svhn => svhn::read(source, files),
        }
    }
}

/// Files by name: those of a folder, or those of an archive.
pub(super) enum Files {
    Folder(PathBuf),
    Archive(PathBuf, BTreeMap<String, Bytes>),
}

impl Files {
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Files::Folder(folder) => folder.join(name).is_file(),
            Files::Archive(_, members) => members.contains_key(name),
        }
    }

    /// For messages.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        match self {
            Files::Folder(path) | Files::Archive(path, _) => path.join(name),
        }
    }

    pub(super) fn bytes(&self, name: &str) -> Result<Bytes> {
        match self {
            Files::Folder(folder) => map(&folder.join(name)),
            Files::Archive(_, members) => {
                members.get(name).cloned().ok_or_else(|| Error::data(self.path(name), "not in the archive"))
            }
        }
    }

    fn kinds(&self) -> Vec<Kind> {
        KINDS.into_iter().filter(|kind| kind.files().iter().any(|name| self.has(name))).collect()
    }
}

/// Opens a path (file or folder) or [`BUILTIN`]; the kind is recognised, never asked for.
///
/// * A folder: the files of one kind in it or in the subfolder where the usual downloaders leave them, else one archive
///   or `.npz` in it. More than one data set is an error that names them.
/// * A file: an `.npz`, an archive, or any file of a data set, which then means its folder.
///
/// Kinds: IDX (raw or gzip), CIFAR-10 and CIFAR-100 as binary files or Python batches (folder, `.tar.gz` or `.tar`), SVHN
/// (`train_32x32.mat` and `test_32x32.mat`), and `.npz` with `x_train`, `y_train`, `x_test`, `y_test`: uint8 images N,H,W or
/// N,C,H,W or N,H,W,C, where the channels are the dimension that is 1 or 3 (both or neither is an error), and integer
/// labels.
///
/// The whole data is read once for its checksum. Raw files stay mapped; compressed ones are decoded into memory.
/// Folders of image files are refused here: [`super::ImageSet`] reads them.
pub fn open(source: &str) -> Result<Dataset> {
    if source == BUILTIN {
        return builtin::open();
    }
    if source.starts_with("builtin:") {
        return Err(Error::Usage(format!("data = \"{source}\": the images in the binary are \"{BUILTIN}\"")));
    }
    let path = Path::new(source);
    let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::data(path, format!("no such file or folder; the images in the binary are \"{BUILTIN}\""))
        }
        _ => Error::io(path, "cannot open")(e),
    })?;
    if meta.is_dir() { open_folder(path) } else { open_file(path) }
}

fn open_folder(path: &Path) -> Result<Dataset> {
    match in_folder(path)? {
        Some(Inside::Files(folder, kind)) => kind.read(path, &Files::Folder(folder)),
        Some(Inside::File(file)) => open_file(&file),
        None if image_folder::holds_images(path) => {
            let what = format!("a folder of image files can be evaluated, not yet trained on: {WANTED}");
            Err(Error::data(path, what))
        }
        None => Err(Error::data(path, format!("no data set found in this folder: {WANTED}"))),
    }
}

/// The data set that a folder holds.
pub(super) enum Inside {
    /// A kind of several files, in this folder.
    Files(PathBuf, Kind),
    /// An archive or `.npz`.
    File(PathBuf),
}

/// What [`open`] finds in a folder; more than one data set is an error.
pub(super) fn in_folder(path: &Path) -> Result<Option<Inside>> {
    let folders = BELOW.iter().map(|below| if below.is_empty() { path.to_path_buf() } else { path.join(below) });
    let mut found: Vec<(PathBuf, Kind)> =
        folders.flat_map(|f| Files::Folder(f.clone()).kinds().into_iter().map(move |kind| (f.clone(), kind))).collect();
    if found.len() > 1 {
        let list: Vec<_> = found.iter().map(|(f, kind)| format!("{} in {}", kind.name(), f.display())).collect();
        return Err(Error::data(path, format!("holds several data sets, name one of them: {}", list.join(", "))));
    }
    if let Some((folder, kind)) = found.pop() {
        return Ok(Some(Inside::Files(folder, kind)));
    }
    let entries = std::fs::read_dir(path).map_err(Error::io(path, "cannot list"))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "npz") || ARCHIVES.iter().any(|name| p.ends_with(name)))
        .filter(|p| p.is_file())
        .collect();
    if files.len() > 1 {
        files.sort();
        let list: Vec<_> = files.iter().map(|p| p.display().to_string()).collect();
        return Err(Error::data(path, format!("holds several data sets, name one of them: {}", list.join(", "))));
    }
    Ok(files.pop().map(Inside::File))
}

fn open_file(path: &Path) -> Result<Dataset> {
    let bytes = map(path)?;
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
        return npz::read(path, bytes);
    }
    let gz = is_gzip(&bytes);
    let mut start = Vec::new();
    if gz {
        // A damaged file that is not an archive is the reader's to report.
        let _ = MultiGzDecoder::new(&bytes[..]).take(512).read_to_end(&mut start);
    } else {
        start.extend_from_slice(&bytes[..bytes.len().min(512)]);
    }
    if start.get(257..262) == Some(b"ustar".as_slice()) {
        let files = unpack(path, &bytes, gz)?;
        return match files.kinds().as_slice() {
            [kind] => kind.read(path, &files),
            _ => Err(Error::data(path, format!("no known data set in this archive: {WANTED}"))),
        };
    }
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if let Some(kind) = KINDS.into_iter().find(|kind| kind.files().contains(&name)) {
        return kind.read(path, &Files::Folder(path.parent().unwrap_or(Path::new("")).to_path_buf()));
    }
    let begins: String = bytes.iter().take(4).map(|b| format!("{b:02x}")).collect();
    Err(Error::data(path, format!("not a data set that is known (it begins with {begins}): {WANTED}")))
}

/// The files of CIFAR in a tar archive, by name without folder.
fn unpack(path: &Path, bytes: &[u8], gz: bool) -> Result<Files> {
    let wanted: Vec<String> = CIFAR.iter().flat_map(|kind| kind.files()).collect();
    let broken = |e: std::io::Error| Error::data(path, format!("damaged or truncated archive: {e}"));
    let stream: Box<dyn Read> = if gz { Box::new(MultiGzDecoder::new(bytes)) } else { Box::new(bytes) };
    let mut archive = tar::Archive::new(stream.take(MAX_UNPACKED));
    let mut members = BTreeMap::new();
    // Raw entries: long names, which the tar crate would gather in memory, do not occur in CIFAR's archives.
    for entry in archive.entries().map_err(broken)?.raw(true) {
        let mut entry = entry.map_err(broken)?;
        let name = match entry.path() {
            Ok(inside) if entry.header().entry_type().is_file() => {
                inside.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
            }
            _ => continue,
        };
        if !wanted.contains(&name) {
            continue;
        }
        let size = entry.header().entry_size().map_err(broken)?;
        if size > MAX_MEMBER {
            return Err(Error::data(path, format!("{name} claims {size} bytes, at most {MAX_MEMBER} are supported")));
        }
        let mut data = Vec::new();
        entry.read_to_end(&mut data).map_err(broken)?;
        if data.len() as u64 != size {
            return Err(Error::data(path, format!("truncated: {name} has {} of {size} bytes", data.len())));
        }
        if members.insert(name.clone(), Bytes::Owned(Arc::from(data))).is_some() {
            return Err(Error::data(path, format!("{name} is in it twice")));
        }
    }
    let mut rest = archive.into_inner();
    std::io::copy(&mut rest, &mut sink()).map_err(broken)?; // to gzip's checksum, which follows the last byte
    if rest.limit() == 0 {
        return Err(Error::data(
            path,
            format!("unpacks to more than {MAX_UNPACKED} bytes: not one of CIFAR's archives"),
        ));
    }
    Ok(Files::Archive(path.to_path_buf(), members))
}

pub(super) fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
}

/// Most bytes that `compressed` bytes of deflate can stand for: 1032 to 1, and some for a tiny file.
pub(super) fn most_inflated(compressed: usize) -> usize {
    compressed.saturating_mul(1032).saturating_add(1032)
}

/// Maps a whole regular file that is not empty.
pub(super) fn map(path: &Path) -> Result<Bytes> {
    // Asked of the path: opening a named pipe would wait for a writer.
    let meta = std::fs::metadata(path).map_err(Error::io(path, "cannot open"))?;
    if !meta.is_file() {
        return Err(Error::data(path, "not a regular file"));
    }
    if meta.len() == 0 {
        return Err(Error::data(path, "empty file"));
    }
    let file = File::open(path).map_err(Error::io(path, "cannot open"))?;
    // SAFETY: the map is read-only and lives in an Arc as long as any split. Another process that changes the file
    // meanwhile changes images; one that cuts it ends this process by SIGBUS, as documented at `Bytes::Mapped`.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path, "cannot map"))?;
    Ok(Bytes::Mapped(Arc::new(map)))
}
