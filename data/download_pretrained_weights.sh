#!/usr/bin/env bash
# Downloads pretrained ResNet-50 backbones:
#   bash data/download_pretrained_weights.sh [--nvidia] [DIR]
# DIR is `weights` by default. Run it again after an interruption: complete
# folders are kept.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
exec "$python" "$root/data/pretrained_weights.py" "$@"
