//! Finds and checks NVIDIA's libraries, so that cudarc finds them too and never panics.
//!
//! cudarc asks the system's loader for `libX.so`, then for names with a version (`libX.so.13`, `.12`, ... `.9`), which sees
//! `LD_LIBRARY_PATH` and `/etc/ld.so.cache` only. Python's packages put the libraries elsewhere. A library that is already
//! loaded is found by its own name (its SONAME, `libX.so.13`) wherever its file lies: so it is opened by its full path first
//! and never closed. Folders, in this order: those in [`FOLDERS`]; what the loader knows; the packages of the Pythons in
//! `PATH`, in `VIRTUAL_ENV` or `CONDA_PREFIX`, and of the user.

use std::error::Error;
use std::path::{Path, PathBuf};

/// Environment variable with folders of libraries, separated as in `PATH`.
pub(super) const FOLDERS: &str = "SPARSE_ENGINE_CUDA_LIBS";

/// What must be known of a library.
pub(super) struct Library {
    /// For people.
    pub title: &'static str,
    /// Python package that holds it.
    pub package: &'static str,
    /// Files, the best first.
    pub files: &'static [&'static str],
    /// Files beside it which it opens when it needs them, and aborts the process where it can't.
    pub parts: &'static [&'static str],
    /// Oldest version, as [`Library::split`] gives it.
    pub oldest: [usize; 3],
    /// Functions that are called.
    pub symbols: &'static [&'static str],
    /// cudarc's: whether it finds the library.
    pub present: unsafe fn() -> bool,
    /// cudarc's: where the library has that function, if it does. It must be present.
    pub address: fn(&str) -> Option<usize>,
    /// The library's version; it must be present, with its parts.
    pub version: fn() -> usize,
}

impl Library {
    /// Loads and checks it; its version, for people. Errors are one line.
    pub fn open(&self) -> Result<String, String> {
        let mut failures = Vec::new();
        let mut loaded = self.load(&folders(std::env::var_os(FOLDERS).as_deref()), &mut failures);
        if loaded.is_none() && !self.is_present() {
            loaded = self.load(&python_folders(), &mut failures);
        }
        if !self.is_present() {
            return Err(self.missing(&failures));
        }
        // By name now: they lie beside what was loaded, or where the loader looks.
        for part in self.parts {
            if let Err(why) = open(Path::new(part)) {
                return Err(format!("{} is incomplete: {part} cannot be loaded ({why}); {}", self.title, self.hint()));
            }
        }
        let absent = |names: &[&'static str]| names.iter().find(|name| (self.address)(name).is_none()).copied();
        let (first, rest) = self.symbols.split_at(1); // the version's
        if let Some(name) = absent(first) {
            return Err(self.without(name));
        }
        if loaded.is_some_and(|own| Some(own) != (self.address)(first[0])) {
            return Err(format!(
                "the system's loader prefers another {} to the one of {FOLDERS} or of Python; set LD_LIBRARY_PATH",
                self.title
            ));
        }
        let version = Self::split((self.version)());
        let [major, minor, patch] = version;
        let text = format!("{} {major}.{minor}.{patch}", self.title);
        if version < self.oldest {
            return Err(format!("{text} is too old: wanted {} or newer; {}", self.oldest[0], self.hint()));
        }
        absent(rest).map_or(Ok(text), |name| Err(self.without(name)))
    }

    fn is_present(&self) -> bool {
        // SAFETY: opens the library and runs its initialisers, as every program that uses it does.
        unsafe { (self.present)() }
    }

    /// Loads the first of its files, with its parts, that one of the folders has; where it has the first function, or 0.
    fn load(&self, folders: &[PathBuf], failures: &mut Vec<String>) -> Option<usize> {
        let files = self.files.iter().flat_map(|file| folders.iter().map(move |folder| folder.join(file)));
        for path in files.filter(|path| path.is_file()) {
            match open(&path) {
                Ok(library) => {
                    for part in self.parts {
                        let _ = open(&path.with_file_name(part)); // missing ones are reported by name
                    }
                    // SAFETY: only looked up, never called through this type.
                    let first = unsafe { library.get::<*const ()>(self.symbols[0].as_bytes()) };
                    return Some(first.map_or(0, |f| *f as usize));
                }
                Err(why) => failures.push(why),
            }
        }
        None
    }

    fn missing(&self, failures: &[String]) -> String {
        let title = self.title;
        if let Some(why) = failures.first() {
            return format!("{title} cannot be loaded: {why}; {}", self.hint());
        }
        let file = self.files[0];
        format!("{title} is not there: neither the system's loader nor a Python package has {file}; {}", self.hint())
    }

    fn without(&self, symbol: &str) -> String {
        format!("{} has no {symbol}: another library of that name, or a broken one; {}", self.title, self.hint())
    }

    fn hint(&self) -> String {
        format!(
            "install the Python package {}, or set {FOLDERS} or LD_LIBRARY_PATH to the folder of {}",
            self.package, self.files[0]
        )
    }

    /// 120304 is 12.3.4, 92801 is 9.28.1; cuDNN before 9 had 8907 for 8.9.7.
    fn split(version: usize) -> [usize; 3] {
        match version {
            ..10_000 => [version / 1000, version / 100 % 10, version % 100],
            _ => [version / 10_000, version / 100 % 100, version % 100],
        }
    }
}

/// Loads a library, for good.
fn open(path: &Path) -> Result<&'static libloading::Library, String> {
    // SAFETY: runs its initialisers; NVIDIA's libraries have none with preconditions.
    match unsafe { libloading::Library::new(path) } {
        Ok(library) => Ok(Box::leak(Box::new(library))),
        // The loader's own words are one level down, and name the file.
        Err(e) => Err(e.source().map_or(e.to_string(), ToString::to_string).replace(['\n', '\r'], " ")),
    }
}

fn folders(list: Option<&std::ffi::OsStr>) -> Vec<PathBuf> {
    list.map_or(vec![], |list| std::env::split_paths(list).filter(|p| p.is_absolute()).collect())
}

/// Folders of NVIDIA's packages in the Pythons that there are, without starting one.
fn python_folders() -> Vec<PathBuf> {
    let of = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let mut roots: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(of).collect();
    for bin in folders(std::env::var_os("PATH").as_deref()) {
        // A virtual environment's python is a link to one whose packages it does not see.
        let python = ["python3", "python"].into_iter().map(|name| bin.join(name)).find(|path| path.exists());
        let Some(python) = python else { continue };
        let target = python.canonicalize().ok();
        roots.extend([Some(python), target].into_iter().flatten().filter_map(|p| Some(p.parent()?.parent()?.into())));
    }
    roots.extend(of("HOME").map(|home| home.join(".local")));
    roots.extend(["/usr", "/usr/local"].map(PathBuf::from));
    packages_in(&roots)
}

/// `lib/pythonX.Y/{site,dist}-packages/nvidia/*/lib` in each, the newest Python first.
fn packages_in(roots: &[PathBuf]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for lib in roots.iter().map(|root| root.join("lib")) {
        let mut pythons = children(&lib, |name| name.starts_with("python3"));
        pythons.sort_by_key(|p| std::cmp::Reverse((p.as_os_str().len(), p.clone()))); // 3.12 before 3.9
        for packages in pythons.iter().flat_map(|p| ["site-packages", "dist-packages"].map(|d| p.join(d))) {
            for folder in children(&packages.join("nvidia"), |_| true) {
                let folder = folder.join("lib");
                if folder.is_dir() && !found.contains(&folder) {
                    found.push(folder);
                }
            }
        }
    }
    found
}

/// Entries of a folder with such names, sorted; none if it cannot be read.
fn children(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> =
        entries.filter(|e| e.file_name().to_str().is_some_and(&wanted)).map(|e| e.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_apart() {
        for (number, want) in [(92_801, [9, 28, 1]), (90_000, [9, 0, 0]), (8_907, [8, 9, 7]), (120_304, [12, 3, 4])] {
            assert_eq!(Library::split(number), want);
        }
        assert!(Library::split(8_907) < [9, 0, 0] && Library::split(111_103) < [12, 0, 0]);
        assert_eq!(Library::split(131_000), [13, 10, 0]);
    }

    #[test]
    fn packages_of_a_python_are_found_newest_first() {
        let root = tempfile::tempdir().unwrap();
        let lib = root.path().join("lib");
        let wanted = ["python3.12/site-packages/nvidia/cu13/lib", "python3.12/site-packages/nvidia/cudnn/lib"];
        for folder in wanted.iter().chain(&["python3.9/dist-packages/nvidia/cudnn/lib", "python3.12/nvidia/x/lib"]) {
            std::fs::create_dir_all(lib.join(folder)).unwrap();
        }
        std::fs::create_dir_all(lib.join("python3.12/site-packages/nvidia/empty")).unwrap();
        let found = packages_in(&[root.path().into(), root.path().into(), "/nowhere".into()]);
        let want = wanted.iter().chain(&["python3.9/dist-packages/nvidia/cudnn/lib"]).map(|f| lib.join(f));
        assert_eq!(found, want.collect::<Vec<_>>());
    }

    #[test]
    fn only_whole_paths_count() {
        let list = std::env::join_paths(["/a", "", "b", "/c"]).unwrap();
        assert_eq!(folders(Some(&list)), [PathBuf::from("/a"), "/c".into()]);
        assert!(folders(None).is_empty());
    }
}
