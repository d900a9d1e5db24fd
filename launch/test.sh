#!/usr/bin/env bash
# Lints and tests the checkout in .venv, which it makes from nothing.
#   bash launch/test.sh         ruff and the fast tests
#   bash launch/test.sh --all   also the slow ones, and the wheel in a clean
#                               environment
#   bash launch/test.sh --long  all tests, also those that take minutes each
# Two files are tested in parallel; `-n 0` tests one at a time. More arguments
# go to pytest. Exits 0 only if everything passed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

select=(-m 'not slow and not long')
if [[ ${1:-} == --all ]]; then
  select=(-m 'not long')
  shift
elif [[ ${1:-} == --long ]]; then
  select=()
  shift
fi

bash launch/environment.sh test
# Reuses programs compiled by an earlier run or another test.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.venv/xla}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5
# No messages about CPU features and missing GPUs.
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}

.venv/bin/ruff check .
.venv/bin/ruff format --check .
start=$SECONDS
status=0
# Warnings of our own modules are errors; those of other packages are hidden.
run() {
  .venv/bin/python -m pytest --disable-warnings --durations=15 -n 2 \
    --dist loadfile --no-loadscope-reorder \
    ${select[@]+"${select[@]}"} "$@" || status=$?
}
if [[ $# -gt 0 ]]; then
  run "$@"
else
  # Most of the time goes into compiling programs that run once, so all but the
  # recorded numbers are computed by programs that are not optimised.
  run tests/*/*_golden.py
  XLA_FLAGS="${XLA_FLAGS:-} $(.venv/bin/python tests/helpers/quick.py)"
  export XLA_FLAGS JAX_DISABLE_MOST_OPTIMIZATIONS=true
  run --ignore-glob='*_golden.py' tests
fi
echo "Tests took $((SECONDS - start)) s; exit status $status."
exit $status
