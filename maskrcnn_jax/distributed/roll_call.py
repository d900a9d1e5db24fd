"""Asks the processes of a job where they are, when one of them is missed.

JAX ends a process whose partner went silent, but says only its number, and
late. Its store of keys, which process 0 keeps, works while devices wait.
"""

import atexit
import contextlib
import itertools
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

import jax

# The client has no public name; Orbax takes it from there too.
from jax._src import distributed

_NAMES = 'maskrcnn_jax/processes'
_ANSWERS = 'maskrcnn_jax/answers'
ADVICE = (
  'Start the same command again in all processes to go on from the last '
  'checkpoint.'
)
_CONNECT_SECONDS = 10
_CONNECTION_SECONDS = 60
_MEETING_SECONDS = 24 * 3600
_JOIN_SECONDS = 60


def introduce(ends_with_first: bool = False) -> list[str]:
  """Tells the others where this process runs.

  Args:
    ends_with_first: end this process, and say why, when process 0 is gone; for
      jobs whose launcher does not end them. JAX would do it too, within a
      fraction of a second, without saying on which machine that was.

  Returns:
    Where all processes run, in process 0; elsewhere only where process 0 does.
  """
  state = distributed.global_state
  rank = state.process_id
  name = f'process {rank} on {socket.gethostname()}, pid {os.getpid()}'
  state.client.key_value_set(f'{_NAMES}/{rank}', name)
  # Should process 0 end, nobody could be asked for its name any more.
  wanted = range(state.num_processes if rank == 0 else 1)
  found = [
    state.client.blocking_key_value_get(f'{_NAMES}/{i}', _JOIN_SECONDS * 1000)
    for i in wanted
  ]
  _first[:] = found[:1]
  if ends_with_first and rank != 0:
    threading.Thread(target=_end_with_first, daemon=True).start()
    # Runs before JAX leaves the job, and process 0 waits for all to leave.
    atexit.register(_leaving.set)
  return found


_first = []  # The name of process 0.
_leaving = threading.Event()


def _end_with_first() -> None:
  """Waits for the machine of process 0 to close a connection to it."""
  while _coordinator_listens(_wait_for_end):
    if _leaving.is_set():
      return
  if not _leaving.is_set():
    text = f'Lost: {_first[0]}: it ended. {ADVICE}\n'
    os.write(sys.stderr.fileno(), text.encode())
    os._exit(1)


def _wait_for_end(connection: socket.socket) -> None:
  # Process 0 drops those that say nothing for long; then there is another.
  connection.settimeout(_CONNECTION_SECONDS)
  with contextlib.suppress(OSError):
    while connection.recv(4096):  # It greets.
      pass


def meet() -> None:
  """Waits until all processes are here, for as long as they live.

  The first collective of a program waits half a minute for the others, on the
  CPU; compiling it may take one machine longer than another by more.
  """
  state = distributed.global_state
  if state.client is not None and state.num_processes > 1:
    name = f'maskrcnn_jax/meeting/{next(_meetings)}'
    state.client.wait_at_barrier(name, _MEETING_SECONDS * 1000)


_meetings = itertools.count()  # Names must differ, and be alike everywhere.


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


def _coordinator_listens(
  use: Callable[[socket.socket], None] = lambda connection: None,
) -> bool:
  """Whether process 0 takes a connection; does something with it if so."""
  state = distributed.global_state
  if state.process_id == 0:
    return True
  host, _, port = state.coordinator_address.rpartition(':')
  try:
    connection = socket.create_connection(
      (host.strip('[]'), int(port)), _CONNECT_SECONDS
    )
  except OSError:
    return False
  with connection:
    use(connection)
  return True


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
