#!/usr/bin/env bash
# Make the virtual environment: the CPU build of torch, then exactly what requirements.lock names, then this package.
#
# Everything is installed with --no-deps, so nothing can pull a package that is not locked, CUDA least of all.
# PYTHON chooses the interpreter (3.11 or 3.12), VENV the folder.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${VENV:-.venv}"

fits() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3 python}; do
        if fits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "setup: Python 3.11 or 3.12 with the venv module is needed; name one by PYTHON=/path/to/python3.11" >&2
    return 1
}

if ! [ -x "$venv/bin/python" ]; then
    python="$(find_python)"
    echo "setup: new environment $venv with $("$python" --version)"
    "$python" -m venv "$venv"
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check -qq "$@"; }

torch="$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)+cpu"
if [ "torch==$("$venv/bin/python" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null)" != "$torch" ]; then
    echo "setup: $torch"
    # A wheel of your own pip configuration first (PyPI itself has no +cpu build), then PyTorch's index.
    pip install --no-deps --progress-bar off "$torch" 2>/dev/null ||
        pip install --no-deps --progress-bar off --index-url https://download.pytorch.org/whl/cpu "$torch"
fi
echo "setup: $(grep -vc '^#' requirements.lock) locked packages"
pip install --no-deps --progress-bar off -r requirements.lock
pip install --no-deps --no-build-isolation --config-settings editable_mode=compat -e .

if "$venv/bin/python" -m pip list --format freeze 2>/dev/null | grep -qi '^nvidia-'; then
    echo "setup: a CUDA package came in; remove $venv and say so in an issue" >&2
    exit 1
fi
echo "setup: ready"
