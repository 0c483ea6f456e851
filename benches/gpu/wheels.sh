#!/bin/sh
# Gathers the wheels that run.sh needs, on a machine with network and the same Python:
#
#   sh benches/gpu/wheels.sh WHEELS [PACKAGE_THAT_THE_GPU_MACHINE_HAS...]
#
# torch, its CUDA libraries and what is named are left out; WHEELS has to stay small enough to be carried.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
wheels=$1
shift
mkdir -p "$wheels"
python3 -m pip wheel -q --wheel-dir "$wheels" "$here[eval]"
for package in torch triton 'nvidia_*' 'cuda_*' "$@"; do
  rm -f "$wheels"/$package-*.whl
done
du -sh "$wheels"
