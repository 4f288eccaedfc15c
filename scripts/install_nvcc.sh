#!/bin/sh
# Installs NVIDIA's CUDA compiler from PyPI into a virtual environment: no root, no GPU, no driver needed, about
# 105 MB to download. Enough to build the GPU kernels; running them needs NVIDIA's driver (580 or newer for 13.0).
#
# usage: scripts/install_nvcc.sh [FOLDER]      FOLDER defaults to .venv-nvcc
#
# The last line printed sets NVCC:  eval "$(scripts/install_nvcc.sh | tail -n 1)" && cargo build --release
set -eu

folder=${1:-.venv-nvcc}
case $folder in
    -*) echo "usage: $0 [FOLDER]" >&2; exit 2 ;;
esac

python=${PYTHON:-python3}
command -v "$python" >/dev/null || { echo "$0: no $python; install Python 3 or set PYTHON" >&2; exit 1; }
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder" || {
    echo "$0: cannot make a virtual environment in $folder; on Debian and Ubuntu: apt install python3-venv" >&2
    exit 1
}

# All five are pinned: nvcc alone pulls a newer nvvm, whose PTX its ptxas refuses.
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
    nvidia-cuda-nvcc==13.0.88 \
    nvidia-nvvm==13.0.88 \
    nvidia-cuda-crt==13.0.88 \
    nvidia-cuda-runtime==13.0.96 \
    nvidia-cuda-cccl==13.0.85

nvcc=$(cd "$folder" && echo "$PWD"/lib/python3*/site-packages/nvidia/cu13/bin/nvcc)
[ -x "$nvcc" ] || { echo "$0: the packages hold no nvcc where it was expected: $nvcc" >&2; exit 1; }
"$nvcc" --version | sed -n 's/^Cuda compilation tools, /# /p'
echo "export NVCC='$nvcc'"
