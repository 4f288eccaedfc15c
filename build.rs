//! Compiles `kernels/*.cu`: with nvcc into fatbins that are embedded in the binary, and with feature `emu` also with a
//! host compiler, so that tests run the same source without a GPU.
//!
//! `SPARSE_ENGINE_CUDA`: `auto` (default: kernels if an nvcc from 12.0 on is found, else a warning), `require` (else an
//! error), `off`. nvcc is `$NVCC`, `$CUDA_HOME/bin/nvcc`, the one in `PATH`, or `/usr/local/cuda/bin/nvcc`.
//! `SPARSE_ENGINE_CUDA_ARCHS`: comma-separated `sm_*` (machine code) and `compute_*` (PTX), default below.
//!
//! What was compiled is kept in cargo's target directory, keyed by content and shared by all profiles: fatbins with what
//! ptxas says of them in `fatbin-cache`, host objects in `emu-cache`. `kernel-resources.txt` beside them is for people.
//!
//! `kernels/emu/build.rs` compiles them for the host, `kernels/resources.rs` reads what ptxas says.

use resources::{Resource, resources, table_path, write_table};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const DEFAULT_ARCHS: &str = "sm_80,sm_90a,compute_90";
const OLDEST_NVCC: (u32, u32) = (12, 0); // the first with sm_90a
const KERNELS: &str = "kernels";
const FLAGS: &[&str] = &["-fatbin", "-O3", "-std=c++17", "-lineinfo", "-Xptxas", "-v", "-Xptxas", "-warn-spills"];

#[cfg(feature = "emu")]
#[path = "kernels/emu/build.rs"]
mod emulation;
#[path = "kernels/resources.rs"]
mod resources;

type Outcome<T> = std::result::Result<T, String>;

fn main() {
    if let Err(message) = run() {
        eprintln!("{message}");
        std::process::exit(1);
    }
}

fn run() -> Outcome<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={KERNELS}");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run this through cargo")?);
    let embedded = match env_text("SPARSE_ENGINE_CUDA")?.as_deref().unwrap_or("auto") {
        "off" => None,
        "auto" => match find_nvcc() {
            Ok(nvcc) => Some(fatbins(&nvcc, &out)?),
            Err(why) => {
                println!(
                    "cargo::warning=built without GPU kernels: {why}. To have them, install the CUDA toolkit (12.0 or \
                     newer) or run scripts/install_nvcc.sh, set NVCC and build again; SPARSE_ENGINE_CUDA=off silences this"
                );
                None
            }
        },
        "require" => {
            let nvcc = find_nvcc().map_err(|why| {
                format!(
                    "SPARSE_ENGINE_CUDA=require, but {why}. Install the CUDA toolkit (12.0 or newer) or run \
                     scripts/install_nvcc.sh and set NVCC, or build with SPARSE_ENGINE_CUDA=auto"
                )
            })?;
            Some(fatbins(&nvcc, &out)?)
        }
        other => return Err(format!("SPARSE_ENGINE_CUDA is {other:?}; allowed: auto, require, off")),
    };
    source_version();
    write(&out.join("kernels.rs"), generated(embedded.as_ref()).as_bytes())?;
    #[cfg(feature = "emu")]
    emulation::compile(&out)?;
    Ok(())
}

/// Tells the library which commit it is built from, and whether the source differs from it, for summaries and checkpoints.
fn source_version() {
    let git = |args: &[&str]| {
        let out = Command::new("git").args(args).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&out.stdout).trim().to_string())
    };
    let top = git(&["rev-parse", "--show-toplevel"]).and_then(|top| fs::canonicalize(top).ok());
    let here = env::current_dir().and_then(fs::canonicalize).ok();
    if top.is_none() || top != here {
        return; // unpacked from an archive, or inside somebody else's repository
    }
    for watched in ["src", "Cargo.toml", "Cargo.lock", "recipes", "assets"] {
        println!("cargo::rerun-if-changed={watched}");
    }
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}"); // grows with each commit
    }
    if let (Some(commit), Some(changes)) = (git(&["rev-parse", "HEAD"]), git(&["status", "--porcelain", "-uno"])) {
        println!("cargo::rustc-env=SPARSE_ENGINE_COMMIT={commit}");
        println!("cargo::rustc-env=SPARSE_ENGINE_DIRTY={}", !changes.is_empty());
    }
}

/// What the library includes: the fatbins and what compiled them.
struct Embedded {
    version: (u32, u32),
    archs: Vec<String>,
    stems: Vec<String>,
    resources: Vec<Resource>,
}

fn generated(embedded: Option<&Embedded>) -> String {
    let (version, archs, mut list) = match embedded {
        None => ("None".into(), String::new(), String::new()),
        Some(e) => (format!("Some(({}, {}))", e.version.0, e.version.1), e.archs.join(","), String::new()),
    };
    for stem in embedded.iter().flat_map(|e| &e.stems) {
        // Writing to a string can't fail.
        let _ = writeln!(list, "    ({stem:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{stem}.fatbin\"))),");
    }
    let mut resources = String::new();
    for r in embedded.iter().flat_map(|e| &e.resources) {
        let [registers, shared, stack, stores, loads] = r.numbers;
        let _ = writeln!(
            resources,
            "    Resource {{ kernel: {:?}, target: {:?}, registers: {registers}, shared_bytes: {shared}, \
             stack_bytes: {stack}, spill_store_bytes: {stores}, spill_load_bytes: {loads} }},",
            r.kernel, r.target
        );
    }
    format!(
        "/// Version of the nvcc that compiled the kernels; `None`: this binary holds none.\n\
         pub const NVCC: Option<(u32, u32)> = {version};\n\
         /// Targets in every fatbin, comma-separated.\n\
         pub const ARCHS: &str = {archs:?};\n\
         /// File stem in `kernels/` and its fatbin.\n\
         pub const FATBINS: &[(&str, &[u8])] = &[\n{list}];\n\
         /// What each kernel needs on each target with machine code; kernels of a file in the compiler's order.\n\
         pub const RESOURCES: &[Resource] = &[\n{resources}];\n"
    )
}

struct Nvcc {
    path: PathBuf,
    /// All that `nvcc --version` says: part of the cache key.
    banner: String,
    version: (u32, u32),
}

/// The first nvcc on the list in this file's header, if it is new enough; else why there is none.
fn find_nvcc() -> Outcome<Nvcc> {
    let name = format!("nvcc{}", env::consts::EXE_SUFFIX);
    let path = if let Some(path) = env_os("NVCC") {
        PathBuf::from(path)
    } else if let Some(home) = env_os("CUDA_HOME") {
        Path::new(&home).join("bin").join(name)
    } else {
        // Looked at only here, so that a changed PATH rebuilds nothing for those who set NVCC or CUDA_HOME.
        let dirs = env_os("PATH").unwrap_or_default();
        env::split_paths(&dirs)
            .chain([PathBuf::from("/usr/local/cuda/bin")])
            .map(|dir| dir.join(&name))
            .find(|p| p.is_file())
            .ok_or("no nvcc in NVCC, CUDA_HOME, PATH or /usr/local/cuda")?
    };
    // Compilers run inside kernels/: a relative path would change its meaning; a bare name is looked up in PATH.
    let path = if path.components().count() > 1 { std::path::absolute(&path).unwrap_or(path) } else { path };
    let run = Command::new(&path)
        .arg("--version")
        .output()
        .map_err(|e| format!("nvcc does not start: {}: {e}", path.display()))?;
    let banner = String::from_utf8_lossy(&run.stdout).into_owned();
    let version = banner
        .split_once("release ")
        .and_then(|(_, rest)| rest.split_once(|c: char| c != '.' && !c.is_ascii_digit()))
        .and_then(|(number, _)| number.split_once('.'))
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .ok_or_else(|| format!("{} --version names no release", path.display()))?;
    if version < OLDEST_NVCC {
        return Err(format!("{} is release {}.{}, older than 12.0", path.display(), version.0, version.1));
    }
    if path.is_absolute() {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    Ok(Nvcc { path, banner, version })
}

/// Compiles every kernel file that the cache lacks, and puts all fatbins into `out`.
fn fatbins(nvcc: &Nvcc, out: &Path) -> Outcome<Embedded> {
    let listed = env_text("SPARSE_ENGINE_CUDA_ARCHS")?.unwrap_or_else(|| DEFAULT_ARCHS.into());
    let archs: Vec<String> = listed.split(',').map(|a| a.trim().to_string()).filter(|a| !a.is_empty()).collect();
    let mut flags: Vec<String> = FLAGS.iter().map(|f| f.to_string()).collect();
    // A seventh of the bytes; every driver that runs code of 13.0 unpacks it.
    if nvcc.version >= (13, 0) {
        flags.push("--compress-mode=size".into());
    }
    if archs.is_empty() {
        return Err(format!("SPARSE_ENGINE_CUDA_ARCHS is empty; the default is {DEFAULT_ARCHS}"));
    }
    for arch in &archs {
        let number = arch.strip_prefix("sm_").or(arch.strip_prefix("compute_")).unwrap_or("");
        if !number.starts_with(|c: char| c.is_ascii_digit()) || !number.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(format!("SPARSE_ENGINE_CUDA_ARCHS: {arch:?} is no target; wanted such as {DEFAULT_ARCHS}"));
        }
        flags.extend(["-gencode".into(), format!("arch=compute_{number},code={arch}")]);
    }

    let key = Key::new(&nvcc.banner, &flags, &below(Path::new(KERNELS), &["cuh"])?)?;
    let cache = cache_dir(out, "fatbin-cache")?;
    let jobs = files(Path::new(KERNELS), "cu")?
        .into_iter()
        .map(|source| {
            let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let cached = cache.join(format!("{stem}-{}.fatbin", key.of(&source)?));
            Ok((stem, cached))
        })
        .collect::<Outcome<Vec<_>>>()?;

    parallel(&jobs, |(stem, cached)| compile(nvcc, &flags, stem, cached))?;
    let mut resources = Vec::new();
    for (stem, cached) in &jobs {
        // A copy, so that emptying the cache never breaks a later build.
        write(&out.join(format!("{stem}.fatbin")), &read(cached)?)?;
        let table = read(&table_path(cached))?;
        resources.extend(String::from_utf8_lossy(&table).lines().filter_map(Resource::parse));
    }
    write_table(&cache.with_file_name("kernel-resources.txt"), &resources)?;
    Ok(Embedded { version: nvcc.version, archs, stems: jobs.into_iter().map(|(stem, _)| stem).collect(), resources })
}

/// Does all jobs, as many at once as cargo's -j allows, and reports every one that failed.
fn parallel<T: Sync>(jobs: &[T], job: impl Fn(&T) -> Outcome<()> + Sync) -> Outcome<()> {
    let next = AtomicUsize::new(0);
    let faults = Mutex::new(Vec::new());
    let allowed = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
    std::thread::scope(|scope| {
        for _ in 0..allowed.clamp(1, jobs.len().max(1)) {
            scope.spawn(|| {
                while let Some(todo) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(fault) = job(todo) {
                        faults.lock().unwrap_or_else(|e| e.into_inner()).push(fault);
                    }
                }
            });
        }
    });
    let faults = faults.into_inner().unwrap_or_else(|e| e.into_inner());
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
}

/// Compiles one kernel file into the cache, unless it is there.
fn compile(nvcc: &Nvcc, flags: &[String], stem: &str, cached: &Path) -> Outcome<()> {
    if cached.is_file() && table_path(cached).is_file() {
        return Ok(());
    }
    let source = format!("{stem}.cu");
    let unfinished = cached.with_extension(format!("{}.tmp", std::process::id()));
    // From inside the folder: messages then name files without it (-lineinfo records it nevertheless).
    let run = Command::new(&nvcc.path)
        .args(flags)
        .arg(&source)
        .arg("-o")
        .arg(&unfinished)
        .current_dir(KERNELS)
        .output()
        .map_err(|e| format!("{}: cannot start: {e}", nvcc.path.display()))?;
    let said = [run.stdout, run.stderr].map(|s| String::from_utf8_lossy(&s).into_owned()).concat();
    if !run.status.success() {
        let _ = fs::remove_file(&unfinished); // nvcc may not have made it
        return Err(format!(
            "{KERNELS}/{source} does not compile ({}, {}); SPARSE_ENGINE_CUDA=off builds without kernels. nvcc said:\n\
             {said}",
            nvcc.path.display(),
            run.status
        ));
    }
    let table = resources(&said);
    let rows: String = table.iter().map(|r| r.fields().join("\t") + "\n").collect();
    put(&table_path(cached), rows.as_bytes())?; // first: a fatbin in the cache has its table beside it
    let report = |l: &&str| l.starts_with("ptxas info") || l.contains(" bytes stack frame, ");
    for line in said.lines().filter(|l| !l.trim().is_empty() && !report(l)) {
        println!("cargo::warning={source}: {line}");
    }
    fs::rename(&unfinished, cached).map_err(|e| format!("{}: cannot rename: {e}", unfinished.display()))
}

/// One folder for all profiles, in cargo's target directory.
fn cache_dir(out: &Path, name: &str) -> Outcome<PathBuf> {
    // target/[triple/]profile/build/package-hash/out; cargo puts CACHEDIR.TAG into the top one.
    let top = out.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file()).or(out.ancestors().nth(4));
    let dir = top.unwrap_or(out).join(name);
    fs::create_dir_all(&dir).map_err(|e| format!("{}: cannot create: {e}", dir.display()))?;
    Ok(dir)
}

/// What a compiled file depends on.
#[derive(Clone)]
struct Key(Sha256);

impl Key {
    fn new(compiler: &str, flags: &[String], headers: &[PathBuf]) -> Outcome<Self> {
        let mut key = Key(Sha256::new());
        key.add(compiler.as_bytes());
        flags.iter().for_each(|f| key.add(f.as_bytes()));
        for header in headers {
            key.add(header.to_string_lossy().as_bytes());
            key.add(&read(header)?);
        }
        Ok(key)
    }

    fn add(&mut self, part: &[u8]) {
        self.0.update((part.len() as u64).to_le_bytes()); // so that no two lists of parts hash alike
        self.0.update(part);
    }

    /// The hash of it all and a source.
    fn of(&self, source: &Path) -> Outcome<String> {
        let mut key = self.clone();
        key.add(&read(source)?);
        Ok(key.0.finalize().iter().map(|b| format!("{b:02x}")).collect())
    }
}

/// Files in `dir` with that extension, sorted.
fn files(dir: &Path, extension: &str) -> Outcome<Vec<PathBuf>> {
    let cannot = |e: std::io::Error| format!("{}: cannot list: {e}", dir.display());
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        if path.extension() == Some(OsStr::new(extension)) {
            found.insert(path);
        }
    }
    Ok(found.into_iter().collect())
}

/// Files in `dir` and below with these extensions, sorted.
fn below(dir: &Path, extensions: &[&str]) -> Outcome<Vec<PathBuf>> {
    let cannot = |e: std::io::Error| format!("{}: cannot list: {e}", dir.display());
    let mut found = extensions.iter().map(|e| files(dir, e)).collect::<Outcome<Vec<_>>>()?.concat();
    for entry in fs::read_dir(dir).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        if path.is_dir() {
            found.extend(below(&path, extensions)?);
        }
    }
    found.sort();
    Ok(found)
}

/// An environment variable; this script runs again when it changes. Empty counts as unset.
fn env_os(name: &str) -> Option<OsString> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var_os(name).filter(|text| !text.is_empty())
}

/// The same where only text can be right.
fn env_text(name: &str) -> Outcome<Option<String>> {
    let text = env_os(name).map(OsString::into_string).transpose();
    text.map_err(|raw| format!("{name} is not valid UTF-8: {}", raw.display()))
}

fn read(path: &Path) -> Outcome<Vec<u8>> {
    fs::read(path).map_err(|e| format!("{}: cannot read: {e}", path.display()))
}

fn write(path: &Path, data: &[u8]) -> Outcome<()> {
    fs::write(path, data).map_err(|e| format!("{}: cannot write: {e}", path.display()))
}

/// The same for a file that another build may be writing too: never half a file.
fn put(path: &Path, data: &[u8]) -> Outcome<()> {
    let unfinished = path.with_extension(format!("{}.part", std::process::id()));
    write(&unfinished, data)?;
    fs::rename(&unfinished, path).map_err(|e| format!("{}: cannot rename: {e}", unfinished.display()))
}
