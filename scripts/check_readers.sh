#!/usr/bin/env bash
# Opens a served overlay by URL in zarr-python, ome-zarr-py and zarrita, and says whether each reads the same pixels.
# zarrita comes from npm into a scratch folder that is removed again; the other two are in .venv.
#
#     scripts/check_readers.sh [--out FOLDER]    default: benchmarks/results
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
(cd "$scratch" && npm init --yes >/dev/null && npm install --no-audit --no-fund --silent "zarrita@0.7")
SLIDEREASON_ZARRITA="$scratch" .venv/bin/python -m benchmarks.readers "$@"
