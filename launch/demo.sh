#!/usr/bin/env bash
# Trains Mask R-CNN on drawn shapes on the CPU, evaluates it and draws
# detections:
#   bash launch/demo.sh [WORKDIR [FLAG ...]]
# Flags go to the command, such as --config.training.num_steps=100. Needs Python
# 3.11 to 3.13 and the package registry. With the same WORKDIR it resumes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

workdir=${1:-local/demo}
start=$SECONDS
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
export TF_ENABLE_ONEDNN_OPTS=${TF_ENABLE_ONEDNN_OPTS:-0}

bash launch/environment.sh
.venv/bin/python data/shapes/shapes.py --output local/shapes
.venv/bin/maskrcnn-jax train_and_eval --config=shapes --workdir="$workdir" \
  "${@:2}"

echo
echo "Done in $(((SECONDS - start) / 60)) min $(((SECONDS - start) % 60)) s."
echo "Pictures of detections: $workdir/pictures"
echo "Metrics:                $workdir/metrics.jsonl"
