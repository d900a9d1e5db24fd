# Sourced by the scripts beside it: sets `python`, which can import the package of
# the checkout: PYTHON, else that of .venv, else python3.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-}
if [[ -z $python ]]; then
  python=$root/.venv/bin/python
  [[ -x $python ]] || python=python3
fi
if ! "$python" -c 'import sys
sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
  echo "$python is not Python 3.11 or later: set PYTHON, or run" \
    "bash $root/launch/environment.sh." >&2
  exit 1
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
