#!/usr/bin/env bash
# Downloads pre-trained ResNet-50 backbones:
#   bash data/download_pretrained_weights.sh [--nvidia] [DIR]
# DIR is `weights` by default. What is there already is not done again, so run it
# again after an interruption.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
exec "$python" "$root/data/pretrained_weights.py" "$@"
