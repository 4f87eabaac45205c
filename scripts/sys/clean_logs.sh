#!/usr/bin/env bash
# Remove the logs of runs and the files of trackers: outputs/**/log*.txt, wandb/ and TensorBoard's event files
# under outputs/ and runs/. A wandb folder that holds weights is kept; models, results and reports never match.
# usage: scripts/sys/clean_logs.sh [--dry-run] [FOLDER]
set -euo pipefail

action=(rm -rf)
if [[ "${1:-}" == --dry-run ]]; then
  action=(echo "would remove")
  shift
fi
cd "${1:-$(dirname "$0")/../..}"

folders=()
for folder in outputs runs wandb; do
  [[ -d $folder ]] && folders+=("$folder")
done
((${#folders[@]})) || exit 0

find "${folders[@]}" -type d -name wandb -prune -print0 | while IFS= read -r -d '' folder; do
  weights=$(find "$folder" \( -name '*.safetensors' -o -name '*.gguf' -o -name '*.bin' -o -name '*.pt' \) -print -quit)
  if [[ -n $weights ]]; then
    echo "kept $folder: it holds $weights" >&2
  else
    "${action[@]}" "$folder"
  fi
done
find "${folders[@]}" -type d -name wandb -prune -o -type f \
  \( -path 'outputs/*' -name 'log*.txt' -o -name 'events.out.tfevents.*' \) -exec "${action[@]}" {} +
