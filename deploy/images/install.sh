#!/usr/bin/env bash
# Install one part of SlideReason into a new virtual environment: what the Dockerfile runs, and tests run without one.
#
#   deploy/images/install.sh gateway|worker FOLDER
#
# Versions are those of requirements.lock: pip resolves what the part asks for under it, and verify.py refuses whatever
# came in beside it. The folder gets neither pip nor a compiler, and is never written to afterwards.
# PYTHON chooses the interpreter (3.11 or 3.12). For a worker, TORCH names the version (that of pyproject.toml) and
# TORCH_INDEX whose build of it: unset is PyPI's for CUDA 13, https://download.pytorch.org/whl/cpu one without CUDA.
set -euo pipefail
cd "$(dirname "$0")/../.."

part="${1:-}" folder="${2:-}"
python="${PYTHON:-python3}"
case "$part" in
    gateway) extras=otel ;;
    worker) extras=worker,otel ;;
    *) echo "install: ${part:-nothing} is no part; accepted are gateway and worker" >&2; exit 2 ;;
esac
[ -n "$folder" ] || { echo "install: name the folder of the new environment" >&2; exit 2; }
[ ! -e "$folder" ] || { echo "install: $folder exists; name a new folder" >&2; exit 2; }

"$python" -m venv --without-pip "$folder"
folder="$(cd "$folder" && pwd)"
# setuptools, which builds our own wheel, is the locked one too
export PIP_CONSTRAINT="$PWD/requirements.lock" PIP_BUILD_CONSTRAINT="$PWD/requirements.lock"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
pip() { "$python" -m pip --python "$folder/bin/python" "$@"; }

if [ "$part" = worker ]; then
    torch="${TORCH:-$(sed -n 's/^ *"torch==\([^"]*\)".*/\1/p' pyproject.toml)}"
    echo "install: torch $torch from ${TORCH_INDEX:-PyPI}"
    # An index of PyTorch's has builds of its own for what torch needs; the rest comes from PyPI, at locked versions.
    pip install --quiet --progress-bar off ${DRY_RUN:+--dry-run} ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
        ${TORCH_INDEX:+--extra-index-url https://pypi.org/simple} --only-binary :all: "torch==$torch"
fi
# A copy, since a build leaves folders beside its source, which may be read-only.
source="$(mktemp -d)"
trap 'rm -rf "$source"' EXIT
cp -R pyproject.toml README.md LICENSE service worker model "$source/"
[ "$part" != gateway ] || rm -rf "$source/model/checkpoints" # weights, of which a gateway has no use
pip install --quiet --progress-bar off ${DRY_RUN:+--dry-run} ${REPORT:+--report "$REPORT"} \
    --only-binary :all: --no-binary slidereason "slidereason[$extras] @ file://$source"
[ -z "${DRY_RUN:-}" ] || { echo "install: $part can be resolved"; exit 0; }

pip check
"$folder/bin/python" deploy/images/verify.py "$part" requirements.lock
