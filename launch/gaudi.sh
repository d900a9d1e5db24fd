#!/usr/bin/env bash
# Runs a command on the Gaudi devices of this machine, where a plugin for JAX
# that registers the name hpu is installed, or HPU_PLUGIN is the path of its
# library. There is no public one: what has run is this script with a plugin
# that is the CPU under that name, so nothing is known of speed, or of what such
# a plugin can compile.
#   bash launch/gaudi.sh NUM VERB --config=NAME --workdir=DIR
# NUM is the number of devices. More than one are driven by a process each,
# which Gaudi's driver tells apart by Open MPI's local rank, as for the
# reference.
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
