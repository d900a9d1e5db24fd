#!/usr/bin/env bash
# Measures a GPU in a quarter of an hour: training and detection in turn with
# torchvision's Mask R-CNN (AMP, channels_last), the recorded numbers of other
# implementations, the time of a step by stage:
#   bash launch/bench_gpu.sh [OUTPUT [FLAG ...]]
# Ends with OUTPUT/report.md: images a second, ratios, shares of the measured
# peak, memory in use beside what the compiler plans, and the tables of all
# parts. Flags are passed to `maskrcnn-jax bench`. The most important part comes
# first, none runs longer than PART_LIMIT and none starts after LIMIT: run again
# with the same OUTPUT, it continues with the parts that are missing. From the
# environment:
#   PYTHON        has JAX for the GPU, Flax and Optax; TensorFlow is not needed
#   TORCH_PYTHON  has torch and torchvision; '' skips torchvision; default: PYTHON
#   IMAGES, ANNOTATIONS   a folder and its COCO json: also measures real images,
#                 if PYTHON has TensorFlow and pycocotools
#   PIP_FIND_LINKS  a folder of wheels of small packages that PYTHON lacks
#   CONFIG=coco:torchvision CANVAS=832,1344 DTYPE=bfloat16 BATCHES='12 8 4 16'
#   DETECTION_BATCHES='8 1' PROFILE_BATCH=12 ('' for none)
#   TESTS='tests/ops/*_golden.py tests/models/*_golden.py' ('' for none)
#   DEMO_SECONDS=300 ('' for none) ROUNDS=10 WARMUP=3 BACKEND=gpu
#   LIMIT=580 PART_LIMIT=240 (seconds)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

output=${1:-local/bench_gpu}
flags=("${@:2}")
python=${PYTHON:-python3}
torch_python=${TORCH_PYTHON-$python}
backend=${BACKEND:-gpu}
limit=${LIMIT:-580}
part_limit=${PART_LIMIT:-240}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
mkdir -p "$output"

# Packages that PYTHON lacks, by the names of pip. Before anything else: time on
# a GPU is dear.
missing() {
  "$python" - "$@" << 'EOF'
import importlib.util, sys
names = {'absl': 'absl-py', 'ml_collections': 'ml-collections',
         'orbax.checkpoint': 'orbax-checkpoint', 'PIL': 'pillow',
         'yaml': 'pyyaml'}
def is_there(name):
  try:
    return importlib.util.find_spec(name)
  except ModuleNotFoundError:
    return False
print(*(names.get(x, x) for x in sys.argv[1:] if not is_there(x)))
EOF
}
packages=$output/packages
[[ ! -d $packages ]] || PYTHONPATH=$PYTHONPATH:$(cd "$packages" && pwd)
large=$(missing jax jaxlib numpy)
if [[ -n $large ]]; then
  echo "$python lacks $large; set PYTHON to one that has them." >&2
  exit 2
fi
small=$(missing absl flatbuffers flax matplotlib ml_collections ml_dtypes \
  msgpack optax orbax.checkpoint PIL safetensors scipy tqdm yaml)
if [[ -n $small ]]; then
  echo "Installing in $packages: $small."
  # shellcheck disable=SC2086
  if ! "$python" -m pip install -qq --no-deps --retries 1 --timeout 10 \
    ${PIP_FIND_LINKS:+--no-index} --target "$packages" $small; then
    echo "$python lacks $small. With a network elsewhere: pip download" \
      "--no-deps --dest WHEELS $small; then PIP_FIND_LINKS=WHEELS here." >&2
    exit 2
  fi
  PYTHONPATH=$PYTHONPATH:$(cd "$packages" && pwd)
fi
for name in pytest tensorflow; do
  [[ -z $(missing $name) ]] || echo "No $name: its part is left out."
done
[[ $backend != cpu ]] || export JAX_PLATFORMS=cpu
"$python" -c "import jax
print('jax', jax.__version__, 'on', jax.devices('$backend'))" &
if [[ -n $torch_python ]]; then
  "$torch_python" -c "import torch, torchvision
print('torch', torch.__version__, 'torchvision', torchvision.__version__,
      'on', 'cuda' if torch.cuda.is_available() else 'cpu')"
fi
wait $!

failed=() left=()
# part NAME COMMAND ...: keeps what a command prints in OUTPUT/NAME.txt
part() {
  local name=$1 seconds=$((limit - SECONDS)) status=0
  shift
  if [[ -e $output/$name.txt ]]; then
    echo "$name is there already."
    return
  fi
  if ((seconds < 1)); then
    left+=("$name")
    return
  fi
  ((seconds <= part_limit)) || seconds=$part_limit
  echo "== $name, after $SECONDS s, at most $seconds s"
  timeout -k 10 "$seconds" "$@" | tee "$output/$name.unfinished" || status=$?
  if ((status == 0)); then
    mv "$output/$name.unfinished" "$output/$name.txt"
  else
    failed+=("$name ($status)")
  fi
}

common=(
  --config="${CONFIG:-coco:torchvision}"
  --config.model.dtype="${DTYPE:-bfloat16}"
  --config.input.canvases="((${CANVAS:-832,1344}),)"
  --config.runtime.backend="$backend"
  --config.runtime.num_devices=1
  --config.runtime.compilation_cache="$output/compiled"
  --rounds="${ROUNDS:-10}" --warmup="${WARMUP:-3}"
)
against=()
[[ -z $torch_python ]] || against=(--against="$torch_python")
# bench NAME BATCH FLAG ...
bench() {
  # What a part that was stopped has left.
  [[ -e $output/$1.txt ]] || rm -rf "${output:?}/$1"
  part "$1" "$python" -m maskrcnn_jax bench "${common[@]}" \
    --config.input.batch_size="$2" --output="$output/$1" "${@:3}" \
    ${flags[@]+"${flags[@]}"}
}

# The most important first: the headline, whether numbers are right, where time
# goes, then other batches.
read -ra batches <<< "${BATCHES:-12 8 4 16}"
read -ra detection <<< "${DETECTION_BATCHES:-8 1}"
step() {
  bench "step_$1" "$1" --what=step ${against[@]+"${against[@]}"}
}
detect() {
  bench "detection_$1" "$1" --what=inference ${against[@]+"${against[@]}"}
}
step "${batches[0]}"
detect "${detection[0]}"
tests=${TESTS-'tests/ops/*_golden.py tests/models/*_golden.py'}
if [[ -n $tests && -z $(missing pytest) ]]; then
  # Products of float32 in float32, as they were recorded.
  # shellcheck disable=SC2086
  part recordings env JAX_DEFAULT_MATMUL_PRECISION=highest \
    JAX_COMPILATION_CACHE_DIR="$(cd "$output" && pwd)/compiled" \
    "$python" -m pytest -p no:cacheprovider --disable-warnings --tb=line \
    -m 'not slow and not long' $tests
fi
profile_batch=${PROFILE_BATCH-12}
[[ -z $profile_batch ]] || bench "profile_$profile_batch" "$profile_batch" \
  --what=profile
for batch in "${batches[@]:1}"; do step "$batch"; done
for batch in "${detection[@]:1}"; do detect "$batch"; done

if [[ -n ${IMAGES:-} && -z $(missing tensorflow pycocotools) ]]; then
  records=$output/records
  [[ -d $records ]] || "$python" -m maskrcnn_jax prepare --images="$IMAGES" \
    --annotations="$ANNOTATIONS" --output="$records/train-*.tfrecord"
  for batch in "${batches[@]}"; do
    bench "real_$batch" "$batch" --what=step,inference \
      --config.input.file_pattern="$records/train-*.tfrecord" \
      ${against[@]+"${against[@]}"}
  done
fi

# As much of the demo as fits into its time.
demo=${DEMO_SECONDS-300}
if [[ -n $demo && -z $(missing tensorflow tensorflow_datasets) ]]; then
  [[ -d local/shapes ]] || "$python" data/shapes/shapes.py --output local/shapes
  part demo bash -c 'timeout "$1" "$2" -m maskrcnn_jax train_and_eval \
    --config=shapes --config.runtime.backend="$3" --workdir="$4" 2>&1 |
    tail -n 40' demo "$demo" "$python" "$backend" "$output/demo"
fi

{
  "$python" -m maskrcnn_jax.benchmarks.report "$output" 2>&1 || true
  for file in "$output"/*.{txt,unfinished}; do
    [[ ! -e $file ]] || printf '\n## %s\n\n%s\n' "$file" "$(< "$file")"
  done
} > "$output/report.md"
cat "$output/report.md"
((${#left[@]} == 0)) || echo "Not started within $limit s: ${left[*]}." >&2
((${#failed[@]} == 0)) || echo "Failed: ${failed[*]}." >&2
exit $((${#failed[@]} + ${#left[@]} > 0))
