"""Asks the processes of a job where they are, when one of them is missed.

JAX ends a process whose partner went silent, but says only its number, and
late. Its store of keys, which process 0 keeps, works while devices wait.
"""

import os
import socket
import time

import jax

# The client has no public name; Orbax takes it from there too.
from jax._src import distributed

_NAMES = 'maskrcnn_jax/processes'
_ANSWERS = 'maskrcnn_jax/answers'
_CONNECT_SECONDS = 3
_JOIN_SECONDS = 60


def introduce() -> list[str]:
  """Tells the others where this process runs; returns where all of them do."""
  client = distributed.global_state.client
  rank = distributed.global_state.process_id
  name = f'process {rank} on {socket.gethostname()}, pid {os.getpid()}'
  client.key_value_set(f'{_NAMES}/{rank}', name)
  # Should process 0 end, nobody could be asked for its name any more.
  wanted = range(distributed.global_state.num_processes if rank == 0 else 1)
  found = [
    client.blocking_key_value_get(f'{_NAMES}/{i}', _JOIN_SECONDS * 1000)
    for i in wanted
  ]
  _first[:] = found[:1]
  return found


_first = []  # The name of process 0.


def call(answer: str, seconds: float) -> list[str]:
  """Says what this process does, and waits for the others to say it too.

  Args:
    answer: what this process does, in words.
    seconds: to wait for the others.

  Returns:
    A line for every process: its answer, or that there is none; only process 0
    where it is gone; [] if this process is alone.
  """
  state = distributed.global_state
  if state.client is None or state.num_processes == 1:
    return []
  if not _coordinator_listens():
    return [f'{_first[0]}: it ended']
  try:
    return _ask(state, answer, seconds)
  except jax.errors.JaxRuntimeError:
    return [f'{_first[0]}: no answer']


def _coordinator_listens() -> bool:
  state = distributed.global_state
  if state.process_id == 0:
    return True
  host, _, port = state.coordinator_address.rpartition(':')
  try:
    with socket.create_connection((host.strip('[]'), port), _CONNECT_SECONDS):
      return True
  except OSError:
    return False


def _ask(state, answer: str, seconds: float) -> list[str]:
  client, end = state.client, time.monotonic() + seconds
  client.key_value_set(
    f'{_ANSWERS}/{state.process_id}', answer, allow_overwrite=True
  )
  answers = {}
  while len(answers) < state.num_processes and time.monotonic() < end:
    time.sleep(min(0.5, seconds))
    answers = dict(client.key_value_dir_get(_ANSWERS))
  names = dict(client.key_value_dir_get(_NAMES))
  return [
    f'{names.get(f"{_NAMES}/{i}", f"process {i}")}: '
    f'{answers.get(f"{_ANSWERS}/{i}", "no answer")}'
    for i in range(state.num_processes)
  ]
