#!/usr/bin/env bash
# Remove __pycache__ and the caches of the tools, outside .venv, .git and outputs.
# usage: scripts/sys/clean_pycache.sh [--dry-run] [FOLDER]
set -euo pipefail

action=(rm -rf)
if [[ "${1:-}" == --dry-run ]]; then
  action=(echo "would remove")
  shift
fi
root=${1:-$(dirname "$0")/../..}

find "$root" \( -name '.venv*' -o -name .git -o -name outputs \) -prune -o -type d \
  \( -name __pycache__ -o -name .pytest_cache -o -name .hypothesis -o -name .ruff_cache -o -name .mypy_cache \) \
  -prune -exec "${action[@]}" {} +
