#!/usr/bin/env bash
# Simulates N hosts on this machine: runs a command as N processes, each with
# its own CPU devices.
#   bash launch/simulated_hosts.sh N COMMAND ...
#   DEVICES=2 bash launch/simulated_hosts.sh 2 maskrcnn-jax train ...
# DEVICES is the number of devices per host, 1 if not set. The output of process
# 0 is unchanged; the lines of the others start with [INDEX] and go to stderr.
# The exit code is that of the first process that fails, which ends the others.
# Needs bash 5.1.
set -euo pipefail

if (($# < 2)) || [[ ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo 'usage: bash launch/simulated_hosts.sh N COMMAND ...' >&2
  exit 2
fi
num=$1
shift
grace=5 # Seconds between SIGTERM and SIGKILL.

# A free port.
port=$((20000 + RANDOM % 12000))
while (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do
  port=$((port + 1))
done
export JAX_PLATFORMS=cpu
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$num
export XLA_FLAGS="${XLA_FLAGS:-} \
--xla_force_host_platform_device_count=${DEVICES:-1}"
# The order of XLA's sums depends on its number of threads, which is at least
# the number of devices. The same number in every layout gives the same digits.
cpus=$(nproc) devices=$((num * ${DEVICES:-1}))
export NPROC=${NPROC:-$((cpus > devices ? cpus : devices))}

pids=()
running() {
  local pid
  for pid in "${pids[@]}"; do
    ! kill -0 "$pid" 2> /dev/null || return 0
  done
  return 1
}
end_all() {
  kill "${pids[@]}" 2> /dev/null || true
  local end=$((SECONDS + grace))
  while running && ((SECONDS < end)); do
    sleep 0.1
  done
  kill -9 "${pids[@]}" 2> /dev/null || true
}
trap 'end_all; exit 143' TERM
trap 'end_all; exit 130' INT

for ((i = 0; i < num; ++i)); do
  if ((i == 0)); then
    JAX_PROCESS_ID=$i "$@" &
  else
    JAX_PROCESS_ID=$i "$@" > >(sed -u "s/^/[$i] /" >&2) 2>&1 &
  fi
  pids+=($!)
done

status=0
for ((left = num; left > 0; --left)); do
  ended=0
  wait -n -p pid "${pids[@]}" || ended=$?
  for i in "${!pids[@]}"; do
    if [[ ${pids[i]} == "$pid" ]]; then
      unset "pids[i]"
      break
    fi
  done
  if ((ended != 0)); then
    status=$ended
    echo "simulated_hosts.sh: process $i of $num ended with $status" \
      "(128 + N is signal N); ending the others." >&2
    ((left == 1)) || end_all
    break
  fi
done
exit "$status"
