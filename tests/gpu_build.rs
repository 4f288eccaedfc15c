//! What build.rs makes of the kernels: the table of registers and spills of this build, and the script itself, run in a
//! folder of its own with a counterfeit nvcc.

use sparse_engine::backend::gpu::{ARCHS, FATBINS, NVCC, RESOURCES};
use std::path::Path;

/// Kernel names that `EXPORT_KERNEL` gives in `kernels/*.cu`.
fn exported() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let mut names = Vec::new();
    for (stem, _) in FATBINS {
        let text = std::fs::read_to_string(folder.join(format!("{stem}.cu"))).unwrap();
        let calls = text.lines().filter_map(|line| line.trim_start().strip_prefix("EXPORT_KERNEL("));
        names.extend(calls.map(|rest| rest.split(')').next().unwrap().trim().to_string()));
    }
    names
}

#[test]
fn every_kernel_has_its_registers_and_none_spills() {
    if NVCC.is_none() {
        assert!(RESOURCES.is_empty());
        drop(std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: no kernels in this binary\n")));
        return;
    }
    let targets: Vec<&str> = ARCHS.split(',').filter(|arch| arch.starts_with("sm_")).collect();
    let kernels = exported();
    assert!(!kernels.is_empty());
    let mut faults = Vec::new();
    for kernel in &kernels {
        for target in &targets {
            let rows: Vec<_> = RESOURCES.iter().filter(|r| r.kernel == kernel && r.target == *target).collect();
            let [row] = rows[..] else {
                faults.push(format!("{kernel} for {target}: {} rows", rows.len()));
                continue;
            };
            if row.registers == 0 || row.registers > 255 || row.shared_bytes > 48 << 10 {
                faults.push(format!("{row:?}"));
            }
            if row.spill_store_bytes + row.spill_load_bytes > 0 {
                faults.push(format!("spills: {row:?}"));
            }
        }
    }
    // Nothing else is in it: a kernel without EXPORT_KERNEL cannot be emulated.
    faults
        .extend(RESOURCES.iter().filter(|r| !kernels.iter().any(|k| k == r.kernel)).map(|r| format!("unknown: {r:?}")));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[cfg(unix)]
mod script {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::process::{Command, Output};

    /// Says what a real nvcc says of two kernels and a function they call.
    const COUNTERFEIT: &str = r#"#!/bin/sh
if [ "$1" = --version ]; then echo "Cuda compilation tools, release ${FAKE_RELEASE:-13.0}, V13.0.88"; exit; fi
echo "$@" >> "$FAKE_LOG"
for arg; do case $last in -o) out=$arg;; esac; case $arg in *.cu) source=$arg;; esac; last=$arg; done
if grep -q BROKEN "$source"; then echo "$source(1): error: first line" >&2; echo "second line" >&2; exit 2; fi
stem=${source%.cu}
cat >&2 <<END
$source(7): warning #177-D: variable "s" was declared but never referenced
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '${stem}_f16' for 'sm_80'
ptxas info    : Function properties for ${stem}_f16
    160 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 39 registers, used 1 barriers, 176 bytes cumulative stack size, 512 bytes smem, 360 bytes cmem[0]
ptxas info    : Compile time = 6.674 ms
ptxas info    : Function properties for _Z6helperfPf
    24 bytes stack frame, 44 bytes spill stores, 44 bytes spill loads
ptxas warning : Registers are spilled to local memory in function '${stem}_f16', 8 bytes spill stores
ptxas info    : Compiling entry function '${stem}_f16' for 'sm_90a'
ptxas info    : Function properties for ${stem}_f16
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
END
printf fatbin > "$out"
"#;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new(kernels: &[(&str, &str)]) -> Self {
            let folder = Folder(tempfile::tempdir().unwrap());
            folder.write("nvcc", COUNTERFEIT);
            std::fs::set_permissions(folder.path("nvcc"), PermissionsExt::from_mode(0o755)).unwrap();
            folder.write("target/CACHEDIR.TAG", "");
            for (name, text) in kernels {
                folder.write(&format!("kernels/{name}"), text);
            }
            folder
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
            std::fs::write(self.path(name), text).unwrap();
        }

        fn read(&self, name: &str) -> String {
            std::fs::read_to_string(self.path(name)).unwrap_or_default()
        }

        /// Runs the script for a profile. With feature `emu` it fails in the end: there is no compiler for the host.
        fn build(&self, profile: &str, settings: &[(&str, &str)]) -> Output {
            let out = self.path(&format!("target/{profile}/build/engine-0/out"));
            std::fs::create_dir_all(&out).unwrap();
            let mut command = Command::new(script());
            for name in ["CUDA_HOME", "SPARSE_ENGINE_CUDA", "SPARSE_ENGINE_CUDA_ARCHS", "TARGET"] {
                command.env_remove(name);
            }
            command.current_dir(self.0.path()).env("OUT_DIR", out).env("NVCC", self.path("nvcc"));
            command.env("FAKE_LOG", self.path("log")).env("NUM_JOBS", "2").env("CXX", "/nonexistent");
            command.envs(settings.iter().copied()).output().unwrap()
        }

        /// How often nvcc has compiled.
        fn compiled(&self) -> usize {
            self.read("log").lines().count()
        }

        fn generated(&self, profile: &str) -> String {
            self.read(&format!("target/{profile}/build/engine-0/out/kernels.rs"))
        }
    }

    /// The build script that cargo compiled last: this build's.
    fn script() -> PathBuf {
        let deps = std::env::current_exe().unwrap();
        let builds = deps.parent().unwrap().parent().unwrap().join("build");
        let found = std::fs::read_dir(builds).unwrap().map(|entry| entry.unwrap().path().join("build-script-build"));
        let ours = |path: &PathBuf| path.to_string_lossy().contains("/sparse-engine-") && path.is_file();
        found.filter(ours).max_by_key(|path| path.metadata().unwrap().modified().unwrap()).expect("a build script")
    }

    fn warnings(run: &Output) -> Vec<String> {
        let said = String::from_utf8_lossy(&run.stdout).into_owned();
        said.lines().filter_map(|line| line.strip_prefix("cargo::warning=")).map(String::from).collect()
    }

    const KERNELS: &[(&str, &str)] = &[("a.cu", "A"), ("b.cu", "B"), ("x.cuh", "1"), ("deep/er/y.cuh", "1")];

    #[test]
    fn what_ptxas_says_becomes_a_table() {
        let folder = Folder::new(KERNELS);
        let run = folder.build("debug", &[]);
        let code = folder.generated("debug");
        for row in [
            "kernel: \"a_f16\", target: \"sm_80\", registers: 39, shared_bytes: 512, stack_bytes: 176, \
             spill_store_bytes: 8, spill_load_bytes: 12 }",
            "kernel: \"b_f16\", target: \"sm_90a\", registers: 255, shared_bytes: 0, stack_bytes: 0, \
             spill_store_bytes: 0, spill_load_bytes: 0 }",
        ] {
            assert!(code.contains(row), "{row} is missing in: {code}");
        }
        assert_eq!(code.matches("Resource {").count(), 4);
        let table = folder.read("target/kernel-resources.txt");
        let columns: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(columns[0][..3], ["kernel", "target", "registers"]);
        assert_eq!(columns[1], ["a_f16", "sm_80", "39", "512", "176", "8", "12"]);
        assert_eq!(columns.len(), 5);
        // The compiler's warnings are shown, spills among them; the report is not.
        let warnings = warnings(&run);
        assert_eq!(warnings.iter().filter(|w| w.contains("a.cu")).count(), 2, "{warnings:?}");
        assert!(warnings.iter().any(|w| w.starts_with("b.cu: ptxas warning : Registers are spilled")));
        assert!(!warnings.iter().any(|w| w.contains("ptxas info") || w.contains("stack frame")), "{warnings:?}");
    }

    #[test]
    fn profiles_share_what_was_compiled_and_any_header_counts() {
        let folder = Folder::new(KERNELS);
        folder.build("debug", &[]);
        assert_eq!(folder.compiled(), 2);
        folder.build("release", &[]);
        folder.build("debug", &[]);
        assert_eq!(folder.compiled(), 2, "the other profile finds both");
        assert_eq!(folder.generated("debug"), folder.generated("release"));
        assert_eq!(folder.read("target/release/build/engine-0/out/a.fatbin"), "fatbin");
        folder.write("kernels/a.cu", "A2");
        folder.build("release", &[]);
        assert_eq!(folder.compiled(), 3, "one changed source");
        folder.write("kernels/deep/er/y.cuh", "2");
        folder.build("debug", &[]);
        assert_eq!(folder.compiled(), 5, "a header in a folder below");
        folder.build("debug", &[("SPARSE_ENGINE_CUDA_ARCHS", "sm_80")]);
        assert_eq!(folder.compiled(), 7, "other targets");
        folder.build("debug", &[("FAKE_RELEASE", "13.1")]);
        assert_eq!(folder.compiled(), 9, "another nvcc");
        for entry in std::fs::read_dir(folder.path("target/fatbin-cache")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "resources") {
                std::fs::remove_file(path).unwrap();
            }
        }
        folder.build("debug", &[]);
        assert_eq!(folder.compiled(), 11, "a fatbin without its table");
        assert_eq!(folder.generated("debug").matches("Resource {").count(), 4);
    }

    #[test]
    fn errors_are_shown_whole_for_every_file() {
        let folder = Folder::new(&[("a.cu", "BROKEN"), ("b.cu", "BROKEN"), ("c.cu", "good")]);
        let run = folder.build("debug", &[]);
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(!run.status.success());
        for part in ["kernels/a.cu does not compile", "a.cu(1): error: first line", "second line", "b.cu(1): error"] {
            assert!(said.contains(part), "{part:?} is missing in: {said}");
        }
        folder.write("kernels/a.cu", "good now");
        folder.write("kernels/b.cu", "good now");
        folder.build("debug", &[]);
        assert_eq!(folder.compiled(), 5, "c.cu was kept");
    }

    #[test]
    fn without_an_nvcc_that_will_do_there_is_one_warning() {
        let folder = Folder::new(KERNELS);
        let absent = [("NVCC", "/nonexistent/nvcc")];
        for (settings, why) in [(&[("FAKE_RELEASE", "11.8")], "older than 12.0"), (&absent, "does not start")] {
            let run = folder.build("debug", settings);
            let [warning] = &warnings(&run)[..] else { panic!("one warning: {run:?}") };
            assert!(warning.contains(why) && warning.contains("built without GPU kernels"), "{warning}");
            assert!(folder.generated("debug").contains("NVCC: Option<(u32, u32)> = None"));
            assert!(folder.generated("debug").contains("RESOURCES: &[Resource] = &[\n];"));
            let run = folder.build("debug", &[settings[0], ("SPARSE_ENGINE_CUDA", "require")]);
            let said = String::from_utf8_lossy(&run.stderr);
            assert!(!run.status.success() && said.contains("SPARSE_ENGINE_CUDA=require, but") && said.contains(why));
            let run = folder.build("debug", &[settings[0], ("SPARSE_ENGINE_CUDA", "off")]);
            assert!(warnings(&run).is_empty());
        }
        assert_eq!(folder.compiled(), 0);
    }
}
