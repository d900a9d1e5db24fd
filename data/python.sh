# Sourced by the scripts beside it: sets `python`, and lets it import the
# checkout's package. PYTHON chooses the interpreter; otherwise it is that of
# .venv where there is one.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-}
if [[ -z $python ]]; then
  python=$root/.venv/bin/python
  [[ -x $python ]] || python=python3
fi
if ! "$python" -c 'import sys
sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
  echo "$python is no Python from 3.11 on: set PYTHON, or run" \
    "bash $root/launch/environment.sh." >&2
  exit 1
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
