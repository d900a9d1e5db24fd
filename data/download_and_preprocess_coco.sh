#!/usr/bin/env bash
# Downloads COCO 2017 and makes the records that training reads:
#   bash data/download_and_preprocess_coco.sh DIR [STAGE ...]
# Stages: download, extract, train, val; by default all. Needs curl and unzip. What
# exists is not made again, so run it again after an interruption.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
exec "$python" "$root/data/coco2017.py" "$@"
