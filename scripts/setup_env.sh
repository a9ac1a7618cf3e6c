#!/usr/bin/env bash
# Sets up a virtual environment from a lock: setup_env.sh VENV cpu|gpu
set -euo pipefail
cd "$(dirname "$0")/.."
VENV="${1:?folder of the virtual environment}"
TARGET="${2:?cpu or gpu}"
LOCK="requirements/$TARGET.txt"
[ -f "$LOCK" ] || { echo "there is no $LOCK: the targets are cpu and gpu" >&2; exit 2; }
unset PYTHONDONTWRITEBYTECODE  # importing vLLM takes three times as long without compiled bytecode
source scripts/uv_env.sh

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "GenAL-Ray's locks are for Python 3.11, and none was found (tried: ${PYTHON:-python3.11 python3 python})." >&2
    echo "Install it (Debian 12: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3.11" >&2
    return 2
}

create_venv() {
    local python
    python="$(find_python)"
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "$python cannot make virtual environments: its venv and ensurepip modules are missing." >&2
        echo "On Debian: apt-get install python3-venv" >&2
        exit 2
    fi
    echo "creating $VENV with $("$python" --version)"
    "$python" -m venv "$VENV"
}

[ -x "$VENV/bin/python" ] || create_venv
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements/bootstrap.txt
export_pip_settings

options=(--python "$VENV/bin/python" --compile-bytecode)
if [ "$TARGET" = cpu ]; then
    backend="$(torch_backend "$(grep -oE '^torch==[^ ]+' "$LOCK")")"
    [ -z "$backend" ] || options+=("$backend")
fi
echo "installing $(grep -cE '^[a-zA-Z0-9]' "$LOCK") packages of $LOCK"
# Retried once: a download that breaks off is the usual reason, and what was fetched is kept.
uv pip sync "${options[@]}" "$LOCK" || uv pip sync "${options[@]}" "$LOCK"
uv pip install --python "$VENV/bin/python" --no-deps --no-build-isolation --editable .
