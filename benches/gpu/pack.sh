#!/usr/bin/env bash
# Builds what run.py takes to a GPU machine without Rust: the stripped binary and stripped test binaries, without paths
# of this machine. Needs Rust, a C++17 compiler and nvcc (NVCC, CUDA_HOME or PATH; scripts/install_nvcc.sh).
#
#   benches/gpu/pack.sh OUT [TEST...]
#
# OUT/sparse-engine, OUT/tests/TEST; default: on_gpu, all tests that run on a GPU.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '5,7s/^# *//p' "$0" >&2; exit 2; }
out=$(realpath -m "$1")
shift
cd "$(dirname "$0")/../.."
root=$(pwd -P)

tests=("$@")
if [ ${#tests[@]} -eq 0 ]; then
    # One program, as each holds all kernels. The tests that it leaves out do nothing more there. gpu_bench, gpu_train and
    # gpu_vendor run emulated only. gpu_emu is about the emulation, gpu_build about nvcc, gpu_probe and gpu_vendor_cuda
    # about counterfeit libraries; the last three also look for files in the folder they were built in.
    tests=(on_gpu)
fi

# A profile of its own beside `release`: other flags would make cargo build that anew each time.
profile=(--profile pack --config 'profile.pack.inherits="release"' --config 'profile.pack.debug=false'
    --config 'profile.pack.strip="symbols"')
cargo_home=$(realpath "${CARGO_HOME:-$HOME/.cargo}")
target=$(cargo metadata --no-deps --format-version 1 |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
# The last one that fits a path is taken.
export RUSTFLAGS="${RUSTFLAGS:-} --remap-path-prefix=$HOME=home --remap-path-prefix=$cargo_home=cargo \
--remap-path-prefix=$root=sparse-engine --remap-path-prefix=$target=target"
export CXXFLAGS="${CXXFLAGS:-} -ffile-prefix-map=$root=. -ffile-prefix-map=$target=target"
export SPARSE_ENGINE_CUDA=require

# nvcc writes the folder it runs in into the machine code (-lineinfo), and has no option to map it. So it runs in a copy
# of the kernels whose name is the same everywhere. It says so with its version, so that the build's cache of compiled
# kernels holds both kinds apart.
nvcc=${NVCC:-${CUDA_HOME:+$CUDA_HOME/bin/nvcc}}
nvcc=${nvcc:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
nvcc=$(realpath "$nvcc")
export NVCC=$target/pack-nvcc/nvcc
mkdir -p "$target/pack-nvcc"
cat >"$NVCC.tmp" <<END
#!/bin/sh
set -e
if [ "\$1" = --version ]; then
    '$nvcc' --version
    echo "in a folder that names no machine"
    exit
fi
copy=/tmp/sparse-engine-kernels-\$(find . -type f | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c 1-12)
if ! [ -d "\$copy" ]; then
    cp -r . "\$copy.\$\$"
    mv -T "\$copy.\$\$" "\$copy" 2>/dev/null || rm -rf "\$copy.\$\$" # another was faster
fi
cd "\$copy"
exec '$nvcc' "\$@"
END
chmod +x "$NVCC.tmp"
# Only if it changed: cargo builds anew when it is newer.
cmp -s "$NVCC.tmp" "$NVCC" && rm "$NVCC.tmp" || mv "$NVCC.tmp" "$NVCC"

rm -rf "$out/sparse-engine" "$out/tests"
mkdir -p "$out/tests"
cargo build "${profile[@]}" --bin sparse-engine
cp "$target/pack/sparse-engine" "$out/"

flags=()
for name in "${tests[@]}"; do flags+=(--test "$name"); done
# The names of test binaries end in hashes; cargo's messages say which is which.
cargo test "${profile[@]}" --features emu --no-run --message-format=json-render-diagnostics "${flags[@]}" |
    python3 -c '
import json, shutil, sys
for line in sys.stdin:
    built = json.loads(line)
    if built.get("executable") and "test" in built["target"]["kind"]:
        shutil.copy(built["executable"], f"{sys.argv[1]}/tests/" + built["target"]["name"])
' "$out"
python3 benches/gpu/binaries.py --bin "$out/sparse-engine" --tests "$out/tests"
