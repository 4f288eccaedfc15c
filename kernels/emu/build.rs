//! A part of the build script: the kernels compiled for the host.

use super::{KERNELS, Key, Outcome, below, cache_dir, files, parallel};
use std::env;
use std::fs;
use std::path::Path;

/// What the host compiler checks in kernels, reported by kernels/emu/sanitize.cpp. Of `undefined`, left out: `vptr`, which
/// wants libubsan; `object-size` and `pointer-overflow`, since guard pages find what they would, and they make loops
/// over a thread's tile of numbers twice as slow again. Clang calls `bounds` `array-bounds`.
const SANITIZERS: &str = "alignment,null,shift,signed-integer-overflow,integer-divide-by-zero,float-cast-overflow,bool,\
                          enum,return,unreachable,vla-bound,builtin,nonnull-attribute,returns-nonnull-attribute";

/// The same kernels as a static library for the host, found by name at run time. Objects are cached, as this script runs
/// again whenever the library's source changes.
pub fn compile(out: &Path) -> Outcome<()> {
    let needs = |e: String| {
        format!(
            "feature `emu` runs the kernels on the host and needs a C++17 compiler (g++ or clang++; set CXX to choose \
             one): {e}"
        )
    };
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).debug(false);
    let runtime = build.try_get_compiler().map_err(|e| needs(e.to_string()))?;
    let bounds = if runtime.is_like_clang() { "array-bounds" } else { "bounds" };
    build
        .flag("-ffp-contract=off") // a*b + c rounds twice, as __fadd_rn(__fmul_rn(a, b), c) does on a GPU
        .flag("-fno-strict-aliasing") // kernels load float4 from float*
        .flag(format!("-fsanitize={SANITIZERS},{bounds}"))
        .flag_if_supported("-fstack-clash-protection") // a large frame does not step over the guard page
        .flag("-Wno-unknown-pragmas"); // #pragma unroll
    // Without it every fused multiply-add is a call, 14 times as slow. Same results; this machine runs what it builds.
    #[cfg(target_arch = "x86_64")]
    if env::var("HOST") == env::var("TARGET") && is_x86_feature_detected!("fma") {
        build.flag("-mfma");
    }
    let kernels = build.try_get_compiler().map_err(|e| needs(e.to_string()))?;
    let version = runtime.to_command().arg("--version").output().map_err(|e| needs(e.to_string()))?;
    let banner = format!("{} {}", runtime.path().display(), String::from_utf8_lossy(&version.stdout));

    let emu = Path::new(KERNELS).join("emu");
    let cache = cache_dir(out, "emu-cache")?;
    let included = below(Path::new(KERNELS), &["cuh", "hpp"])?;
    let mut jobs = Vec::new();
    for (tool, sources) in
        [(&kernels, [files(Path::new(KERNELS), "cu")?, files(&emu, "cu")?].concat()), (&runtime, files(&emu, "cpp")?)]
    {
        let flags: Vec<String> = tool.args().iter().map(|f| f.to_string_lossy().into_owned()).collect();
        let key = Key::new(&banner, &flags, &included)?;
        for source in sources {
            let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let object = cache.join(format!("{name}-{}.o", key.of(&source)?));
            jobs.push((tool, source, object));
        }
    }
    parallel(&jobs, |(tool, source, object)| {
        if object.is_file() {
            return Ok(());
        }
        let unfinished = object.with_extension(format!("{}.tmp", std::process::id()));
        // .cu is no extension that a host compiler knows.
        let run = tool.to_command().args(["-x", "c++", "-c"]).arg(source).arg("-o").arg(&unfinished).output();
        let run = run.map_err(|e| needs(format!("{}: {e}", tool.path().display())))?;
        let said = String::from_utf8_lossy(&run.stderr);
        if !run.status.success() {
            return Err(needs(format!("{} does not compile:\n{said}", source.display())));
        }
        for line in said.lines() {
            println!("cargo::warning={line}");
        }
        fs::rename(&unfinished, object).map_err(|e| format!("{}: cannot rename: {e}", unfinished.display()))
    })?;
    cc::Build::new()
        .cpp(true) // links the C++ library
        .objects(jobs.iter().map(|(_, _, object)| object))
        .link_lib_modifier("+whole-archive") // kernels register themselves: no symbol of theirs is referred to
        .try_compile("sparse_engine_emu")
        .map_err(|e| needs(e.to_string()))
}
