#!/usr/bin/env bash
# Runs a command on the Gaudi devices of this machine:
#   bash launch/gaudi.sh NUM VERB --config=NAME --workdir=DIR
# Needs a JAX plugin that registers the name hpu, installed or with HPU_PLUGIN
# as the path of its library. No public one exists; the tests use a plugin that
# is the CPU under that name. NUM is the number of devices. Each of several
# devices is driven by its own process, by Open MPI's local rank, as in Habana's
# system.
set -euo pipefail

if (($# < 2)) || [[ ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo 'usage: bash launch/gaudi.sh NUM VERB --config=NAME --workdir=DIR' >&2
  exit 2
fi
num=$1
shift
prefix=()
if ((num > 1)); then
  prefix=(mpirun --bind-to none --np "$num")
  if ((EUID == 0)); then
    prefix+=(--allow-run-as-root)
  fi
fi
flags=(--config.runtime.backend=hpu)
if [[ -n ${HPU_PLUGIN:-} ]]; then
  flags+=(--config.runtime.plugin_path="$HPU_PLUGIN")
fi
exec ${prefix[@]+"${prefix[@]}"} maskrcnn-jax "$@" "${flags[@]}"
