#!/usr/bin/env bash
# Makes .venv with this checkout installed in it, unless setup.py has not
# changed since the last time. An argument names an extra of setup.py; PYTHON
# chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extra=${1:-}

supported() {
  "$1" -c 'import ensurepip, sys, venv
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

# The newest that runs: a name on PATH may be a wrapper without a Python.
find_python() {
  local name path
  for name in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
    for path in $(type -aP "$name"); do
      if supported "$path"; then
        echo "$path"
        return
      fi
    done
  done
  echo "No Python 3.11 to 3.13 with the venv module was found" \
    "(on Debian and Ubuntu: apt-get install python3-venv)." >&2
  return 1
}

stamp=.venv/installed
if ! supported .venv/bin/python; then
  python=$(find_python)
  echo "Making .venv with $("$python" --version) ($python)."
  "$python" -m venv --clear .venv
fi
# The stamp: checksum of setup.py, path of the checkout, installed extras.
wanted=$(cksum < setup.py; pwd)
if [[ "$(head -n 2 $stamp 2>/dev/null)" != "$wanted" ]]; then
  echo "$wanted" > $stamp.new
elif [[ -z $extra ]] || grep -qx "extra $extra" $stamp; then
  exit 0
else
  cp $stamp $stamp.new
fi
echo 'Installing maskrcnn_jax and its requirements; minutes the first time.'
start=$SECONDS
.venv/bin/python -m pip install -qq --disable-pip-version-check \
  --editable ".${extra:+[$extra]}"
[[ -z $extra ]] || echo "extra $extra" >> $stamp.new
mv $stamp.new $stamp
echo "Installed in $((SECONDS - start)) s."
