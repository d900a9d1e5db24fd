#!/usr/bin/env bash
# Downloads COCO 2017 and makes the records that training reads:
#   bash data/download_and_preprocess_coco.sh DIR [STAGE ...]
# Stages: download, extract, train, val; by default all. What is there already
# is not done again, so run it again after an interruption.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
exec "$python" "$root/data/coco2017.py" "$@"
