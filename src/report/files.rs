//! Files that are either the old ones or the new ones, whole.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Replaces the file at `path` by what `fill` writes: into `path` + ".tmp" in the same folder, synced, renamed over the
/// old file, and the folder synced. On any failure, a full disk included, the old file stays and the temporary one goes.
pub fn replace(
    path: &Path,
    doing: &'static str,
    fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let temporary = temporary(path);
    let done = write(&temporary, fill).and_then(|()| fs::rename(&temporary, path));
    if done.is_err() {
        let _ = fs::remove_file(&temporary); // the failure above is the one to report
    }
    done.and_then(|()| sync_folder(path)).map_err(Error::io(path, doing))
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(".tmp");
    name.into()
}

fn write(temporary: &Path, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> std::io::Result<()> {
    // One left by a killed process is replaced; `create_new` then follows no link that stands in its place.
    match fs::remove_file(temporary) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut out = BufWriter::new(File::options().write(true).create_new(true).open(temporary)?);
    fill(&mut out)?;
    out.flush()?;
    out.get_ref().sync_all()
}

/// A rename is safe only once its folder is on the disk. Systems that cannot open folders have no such call.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    if cfg!(unix) {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        replace(&path, "cannot write", |w| w.write_all(b"old")).unwrap();
        fs::write(folder.path().join("file.tmp"), "left by a killed process").unwrap();
        let error = replace(&path, "cannot write", |w| {
            w.write_all(&[b'x'; 100_000])?; // more than the buffer: some of it is in the file already
            Err(std::io::Error::from(std::io::ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert!(error.to_string().contains("file: cannot write: "), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["file"]);
        replace(&path, "cannot write", |w| w.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn a_missing_folder_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = replace(&folder.path().join("no/file"), "cannot write", |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("no/file: cannot write: "), "{error}");
    }

    #[test]
    #[cfg(unix)]
    fn a_link_in_the_temporary_place_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, "kept").unwrap();
        std::os::unix::fs::symlink(&victim, folder.path().join("file.tmp")).unwrap();
        replace(&folder.path().join("file"), "cannot write", |w| w.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"kept");
        assert!(!fs::symlink_metadata(folder.path().join("file")).unwrap().is_symlink());
    }
}
