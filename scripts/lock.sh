#!/usr/bin/env bash
# Resolve pyproject.toml for Linux on Python 3.11 and 3.12 and write requirements.lock.
#
# torch is left out and its own small dependencies are named instead: scripts/setup.sh installs its CPU build alone, so
# that no CUDA package can ever enter the lock. Pins already in the lock are kept; UPGRADE=1 looks for newer ones.
set -euo pipefail
cd "$(dirname "$0")/.."
bin="${VENV:-.venv}/bin"
"$bin/python" -m uv --version >/dev/null 2>&1 || "$bin/python" -m pip install --quiet uv

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
echo "torch ; sys_platform == 'never'" >"$work/no-torch.txt"
"$bin/python" - >"$work/torch-needs.txt" <<'PYTHON'
from importlib.metadata import requires

print("\n".join(line for line in requires("torch") if "extra ==" not in line))
PYTHON
[ -n "${UPGRADE:-}" ] || { [ -f requirements.lock ] && grep -v '^#' requirements.lock >"$work/lock.txt"; } || true
[ -f "$work/lock.txt" ] || touch "$work/lock.txt"

"$bin/python" -m uv pip compile pyproject.toml "$work/torch-needs.txt" --all-extras --universal --python-version 3.11.3 \
    --python "$bin/python" --no-python-downloads --overrides "$work/no-torch.txt" --no-annotate --no-header --output-file "$work/lock.txt" >/dev/null
{
    echo "# Every package at one exact version, for Linux on Python 3.11 and 3.12. Written by \`make lock\`; do not edit."
    echo "# torch is not here: scripts/setup.sh installs its CPU build first."
    sed -e '/^torch==/d' -e "s/ and sys_platform == 'linux'//; s/ ; sys_platform == 'linux'//" "$work/lock.txt"
} >requirements.lock
echo "requirements.lock: $(grep -vc '^#' requirements.lock) packages"
