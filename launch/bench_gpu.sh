#!/usr/bin/env bash
# Measures training and detection on a GPU, in turn with torchvision's Mask R-CNN
# in the same precision: bash launch/bench_gpu.sh [OUTPUT [FLAG ...]].
# Ends with a table of images a second, ratios and shares of the measured peak.
# Flags are passed to `maskrcnn-jax bench`. Run again with the same OUTPUT, it
# continues where it was stopped, or with other BATCHES. From the environment:
#   PYTHON        has JAX for the GPU, Flax and Optax; TensorFlow is not needed
#   TORCH_PYTHON  has torch and torchvision; '' skips torchvision; default: PYTHON
#   IMAGES, ANNOTATIONS   a folder and its COCO json: also measures real images,
#                 if PYTHON has TensorFlow and pycocotools
#   CONFIG=coco:torchvision CANVAS=832,1344 DTYPE=bfloat16 BATCHES='4 8 12 16'
#   STAGES_BATCH=12 ('' for none) ROUNDS=10 WARMUP=3 BACKEND=gpu
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

output=${1:-local/bench_gpu}
flags=("${@:2}")
python=${PYTHON:-python3}
torch_python=${TORCH_PYTHON-$python}
config=${CONFIG:-coco:torchvision}
canvas=${CANVAS:-832,1344}
batches=${BATCHES:-4 8 12 16}
stages_batch=${STAGES_BATCH-12}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$output"

# Small packages that a machine for JAX and torch may lack are installed beside
# the results. Without a network pip takes wheels from PIP_FIND_LINKS=FOLDER.
missing=$("$python" - << 'EOF'
import importlib.util
names = {'absl': 'absl-py', 'contourpy': 'contourpy', 'cycler': 'cycler',
         'dateutil': 'python-dateutil', 'fontTools': 'fonttools',
         'kiwisolver': 'kiwisolver', 'matplotlib': 'matplotlib',
         'ml_collections': 'ml-collections', 'packaging': 'packaging',
         'PIL': 'pillow', 'pyparsing': 'pyparsing', 'safetensors': 'safetensors',
         'six': 'six', 'tqdm': 'tqdm', 'yaml': 'pyyaml'}
print(*(d for m, d in names.items() if not importlib.util.find_spec(m)))
EOF
)
packages=$output/packages
if [[ -n $missing && ! -d $packages ]]; then
  echo "Installing in $packages: $missing."
  # shellcheck disable=SC2086
  "$python" -m pip install -qq --no-deps --target "$packages" $missing
fi
if [[ -d $packages ]]; then
  PYTHONPATH=$PYTHONPATH:$(cd "$packages" && pwd)
fi

common=(
  --config="$config"
  --config.model.dtype="${DTYPE:-bfloat16}"
  --config.input.canvases="(($canvas),)"
  --config.runtime.backend="${BACKEND:-gpu}"
  --config.runtime.num_devices=1
  --rounds="${ROUNDS:-10}" --warmup="${WARMUP:-3}"
)
against=()
if [[ -n $torch_python ]]; then
  against=(--against="$torch_python")
fi

failed=()
# measure NAME BATCH FLAG ...
measure() {
  local folder=$output/$1
  if [[ -e $folder/bench.json ]]; then
    echo "$folder exists already."
    return
  fi
  echo "Measuring $1."
  rm -rf "$folder.unfinished"
  if "$python" -m maskrcnn_jax bench "${common[@]}" \
    --config.input.batch_size="$2" --output="$folder.unfinished" "${@:3}" \
    ${flags[@]+"${flags[@]}"}; then
    mv "$folder.unfinished" "$folder"
  else
    failed+=("$1")
  fi
}

for batch in $batches; do
  measure "random_$batch" "$batch" --what=step,inference \
    ${against[@]+"${against[@]}"}
done
if [[ -n $stages_batch ]]; then
  measure "stages_$stages_batch" "$stages_batch" --what=compilation,stages
fi

if [[ -n ${IMAGES:-} ]]; then
  if "$python" -c 'import tensorflow, pycocotools' 2> /dev/null; then
    records=$output/records
    if [[ ! -d $records ]]; then
      "$python" -m maskrcnn_jax prepare --images="$IMAGES" \
        --annotations="$ANNOTATIONS" --output="$records/train-*.tfrecord"
    fi
    for batch in $batches; do
      measure "real_$batch" "$batch" --what=step,inference \
        --config.input.file_pattern="$records/train-*.tfrecord" \
        ${against[@]+"${against[@]}"}
    done
  else
    echo "$python has no TensorFlow or no pycocotools: only random images."
  fi
fi

if ((${#failed[@]})); then
  echo "Failed: ${failed[*]}." >&2
fi
echo
"$python" -m maskrcnn_jax.benchmarks.report "$output" | tee "$output/table.md"
exit $((${#failed[@]} > 0))
