"""Collectives: the ways in which the processes of a job exchange values.

All processes must call `broadcast`, `all_gather`, `gather`, `first_error`,
`barrier` and `preempted`, in the same order; a process that is alone gets its
own values back. `register` and `all_statuses` go through the key-value store of
process 0 (JAX's coordination service), which answers while devices wait.
"""

import atexit
import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

ADVICE = (
  'Start the same command again in all processes to go on from the last '
  'checkpoint.'
)
# Words in errors of collectives and of JAX's coordination service.
_LOST = ('Gloo', 'NCCL', 'UNAVAILABLE', 'heartbeat')
_NAMES = 'maskrcnn_jax/processes'
_STATUSES = 'maskrcnn_jax/statuses'
_BARRIERS = 'maskrcnn_jax/barriers'
_CONNECT_SECONDS = 10
_CONNECTION_SECONDS = 60
_BARRIER_SECONDS = 24 * 3600
_REGISTER_SECONDS = 60


def broadcast(value: Any) -> Any:
  """The value of process 0, in all processes.

  Args:
    value: a bool, a number or a tree of arrays, of the same shapes everywhere.
  """
  if jax.process_count() == 1:
    return value
  return multihost_utils.broadcast_one_to_all(value)


def all_gather(value: Any) -> list:
  """The values of all processes by rank.

  Args:
    value: in types of JSON; its size may differ between processes.
  """
  if jax.process_count() == 1:
    return [value]
  encoded = np.frombuffer(json.dumps(value).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.array(len(encoded)))
  padded = np.zeros(np.max(lengths), np.uint8)
  padded[: len(encoded)] = encoded
  rows = multihost_utils.process_allgather(padded)
  return [json.loads(bytes(row[:n])) for row, n in zip(rows, lengths)]


def gather(items: list) -> list:
  """The items of all processes by rank, on process 0; [] on the others."""
  found = all_gather(items)
  return [] if jax.process_index() else [*itertools.chain.from_iterable(found)]


def first_error(error: Any) -> Any:
  """The error of the first process that has one; the given value if none has.

  Args:
    error: of this process, in types of JSON; '' or None if it has none.
  """
  return next(filter(None, all_gather(error)), error)


def preempted(step: int) -> bool:
  """Whether the job is asked to end (SIGTERM) and all processes are at a step.

  Args:
    step: finished; every process asks after each step.
  """
  return multihost_utils.reached_preemption_sync_point(step)


def barrier() -> None:
  """Waits for all processes, for up to a day.

  On the CPU, a collective waits only half a minute for the others; one process
  may take longer than that to compile or to score.
  """
  job = _coordination()
  if job.client is not None and job.num_processes > 1:
    name = f'{_BARRIERS}/{next(_barriers)}'
    job.client.wait_at_barrier(name, _BARRIER_SECONDS * 1000)


_barriers = itertools.count()  # Names must differ, and be alike everywhere.


def is_loss(message: str) -> bool:
  """Whether an error says that another process is gone."""
  return any(word in message for word in _LOST)


def register(exit_with_first: bool = False) -> list[str]:
  """Tells the other processes where this one runs.

  Args:
    exit_with_first: exit, and say why, when process 0 is gone; for jobs whose
      launcher does not end them. JAX would exit too, within a fraction of a
      second, without naming the machine.

  Returns:
    Where all processes run, in process 0; elsewhere only where process 0 does.
  """
  job = _coordination()
  rank = job.process_id
  name = f'process {rank} on {socket.gethostname()}, pid {os.getpid()}'
  job.client.key_value_set(f'{_NAMES}/{rank}', name)
  # Once process 0 is gone, its name can no longer be looked up.
  found = [
    job.client.blocking_key_value_get(f'{_NAMES}/{i}', _REGISTER_SECONDS * 1000)
    for i in range(1 if rank else job.num_processes)
  ]
  _first[:] = found[:1]
  if exit_with_first and rank != 0:
    threading.Thread(target=_exit_with_first, daemon=True).start()
    # Runs before JAX leaves the job, and process 0 waits for all to leave.
    atexit.register(_leaving.set)
  return found


_first = []  # The name of process 0.
_leaving = threading.Event()


def all_statuses(status: str, seconds: float) -> list[str]:
  """Reports the status of this process and waits for those of the others.

  Returns:
    A line for every process: its status, or that there was no answer; only
    process 0 where that is gone; [] if this process is alone.
  """
  job = _coordination()
  if job.client is None or job.num_processes == 1:
    return []
  client, end, statuses = job.client, time.monotonic() + seconds, {}
  try:
    if job.process_id != 0:
      _connect_to_first().close()
    key = f'{_STATUSES}/{job.process_id}'
    client.key_value_set(key, status, allow_overwrite=True)
    while len(statuses) < job.num_processes and time.monotonic() < end:
      time.sleep(min(0.5, seconds))
      statuses = dict(client.key_value_dir_get(_STATUSES))
    names = dict(client.key_value_dir_get(_NAMES))
  except OSError:
    return [f'{_first[0]}: it ended']
  except jax.errors.JaxRuntimeError:
    return [f'{_first[0]}: no answer']
  return [
    f'{names.get(f"{_NAMES}/{i}", f"process {i}")}: '
    f'{statuses.get(f"{_STATUSES}/{i}", "no answer")}'
    for i in range(job.num_processes)
  ]


def _exit_with_first() -> None:
  """Waits until the machine of process 0 closes a connection to it."""
  while not _leaving.is_set():
    try:
      connection = _connect_to_first()
    except OSError:
      break
    # Process 0 drops silent connections after a while; then there is another.
    with connection, contextlib.suppress(OSError):
      connection.settimeout(_CONNECTION_SECONDS)
      while connection.recv(4096):  # It sends a greeting.
        pass
  if not _leaving.is_set():
    text = f'Lost: {_first[0]}: it ended. {ADVICE}\n'
    os.write(sys.stderr.fileno(), text.encode())
    os._exit(1)


def _connect_to_first() -> socket.socket:
  host, _, port = _coordination().coordinator_address.rpartition(':')
  address = host.strip('[]'), int(port)
  return socket.create_connection(address, _CONNECT_SECONDS)


def _coordination():
  """JAX's coordination service: its client, and rank and size of the job.

  `jax.distributed` gives no public access to the client (jax 0.10 exports
  `initialize`, `is_initialized` and `shutdown`), and what is public in
  `multihost_utils` runs on the devices, which hang when a process is lost.
  Orbax takes the client from the same place.
  """
  from jax._src import distributed

  return distributed.global_state
