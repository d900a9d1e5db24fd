#!/usr/bin/env bash
# Runs a command as one process of a job on several machines, each of which
# drives all devices of its machine. On machine INDEX of NUM, from 0:
#   bash launch/multihost.sh ADDRESS NUM INDEX COMMAND ...
#   bash launch/multihost.sh node0:12345 2 0 maskrcnn-jax train_and_eval ...
# ADDRESS is HOST:PORT, a free port of machine 0 that the others can reach. The
# workdir and records must be on a shared disk. The command starts when all have
# joined; when one ends, the others end too.
set -euo pipefail

if (($# < 4)); then
  echo 'usage: bash launch/multihost.sh ADDRESS NUM INDEX COMMAND ...' >&2
  exit 2
fi
export JAX_COORDINATOR_ADDRESS=$1 JAX_NUM_PROCESSES=$2 JAX_PROCESS_ID=$3
exec "${@:4}"
