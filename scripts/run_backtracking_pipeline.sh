#!/usr/bin/env bash
# The interpretability pipeline, command by command, so that each may go to a job of its own.
# usage: scripts/run_backtracking_pipeline.sh CONFIG [RUN_ID] [section.key=value ...]
set -euo pipefail

config=${1:?usage: $0 CONFIG [RUN_ID] [section.key=value ...]}
run_id=run-$(date -u +%Y%m%d-%H%M%S)
shift
if [[ $# -gt 0 && "$1" != *=* ]]; then
  run_id=$1
  shift
fi

interp() { "${PYTHON:-python}" -m llmhalluc.run_interp "$1" --config "$config" --run-id "$run_id" "${@:2}"; }

for command in init-run prepare-data formatting-sweep detect-events logit-lens ablation-scan compare-conditions \
  probe steer counterfactual make-report; do
  interp "$command" "$@"
done
