#!/bin/sh
# What taskvec does on a GPU, on a bare machine without network, in six minutes:
#
#   sh benches/gpu/run.sh WHEELS OUT [--miniature FOLDER]
#
# WHEELS is what wheels.sh gathered. Python, torch and its CUDA libraries are the machine's own. OUT/record.json
# and OUT/record.md are the dated record.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
wheels=$1 out=$2
shift 2
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
python3 "$here/bench_gpu.py" "$out" "$@"
