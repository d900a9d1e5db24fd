"""Watchdog: aborts a run that hangs and reports where; no other."""

import os
import pathlib
import re
import sys
import time
import types

import pytest
from job_process import execute

from maskrcnn_jax.distributed import watchdog
from maskrcnn_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
SIMULATED_HOSTS = ROOT / 'launch' / 'simulated_hosts.sh'


def make(seconds):
  """A watchdog, its clock (in `now`), and the exit codes it ends with."""
  codes, clock = [], types.SimpleNamespace(now=0.0)
  watch = watchdog.Watchdog(seconds, 0, codes.append, lambda: clock.now)
  return watch, clock, codes


def test_without_a_heartbeat_the_process_ends_and_reports(capfd):
  watch, clock, codes = make(0.2)
  with watch:
    watch.heartbeat('step 12: waiting for the devices')
    clock.now = 7.0
    end = time.monotonic() + 60
    while not codes and time.monotonic() < end:
      time.sleep(0.05)
  assert codes == [3]
  message = capfd.readouterr().err
  assert 'runtime.watchdog_seconds, 0.2 s' in message
  assert 'step 12: waiting for the devices for 7 s' in message
  # The stack of the thread that hangs.
  assert 'test_without_a_heartbeat_the_process_ends_and_reports' in message


def test_heartbeats_and_pauses_keep_it_quiet(capfd):
  watch, clock, codes = make(0.2)
  with watch:
    for step in range(4):
      clock.now += 0.19
      time.sleep(0.1)  # It looks every 0.05 s.
      watch.heartbeat(f'step {step}')
    with watch.paused():
      clock.now += 9
      time.sleep(0.2)
    time.sleep(0.2)
  clock.now += 9
  time.sleep(0.2)
  assert codes == []
  assert capfd.readouterr().err == ''


def test_without_a_limit_it_never_ends_anything():
  watch, clock, codes = make(0)
  with watch:
    watch.heartbeat('step 1')
    clock.now = 1e9
    time.sleep(0.1)
  assert codes == []


def test_a_time_must_not_be_negative():
  with pytest.raises(UserError) as error:
    watchdog.Watchdog(-1)
  assert error.value.argument == 'runtime.watchdog_seconds'


HANG = """
import sys, time
from maskrcnn_jax.distributed import processes
processes.start({'backend': 'cpu', 'heartbeat_seconds': 60})
import jax
from maskrcnn_jax.distributed import collectives, watchdog
rank = jax.process_index()
with watchdog.Watchdog(3, answer_seconds=10) as watch:
  for step in range(1, 100):
    watch.heartbeat(f'step {step}: reading')
    if step == 5 and rank == 1:
      time.sleep(1000)
    watch.heartbeat(f'step {step}: waiting for the devices')
    collectives.all_gather(step)
"""


@pytest.mark.slow
def test_a_collective_that_does_not_return_names_step_and_hosts():
  program = (sys.executable, '-c', HANG)
  done = execute(['bash', SIMULATED_HOSTS, '2', *program], timeout=120)
  assert done.returncode == 3
  host = os.uname().nodename
  assert f'process 0 on {host}, pid ' in done.stderr
  table = r'process 0 on .*: step 5: waiting for the devices for \d+ s\n'
  table += r'process 1 on .*: step 5: reading for \d+ s\n'
  assert re.search(table, done.stderr), done.stderr
  # The stack of the process that keeps the others waiting.
  line = HANG.split('\n').index('      time.sleep(1000)') + 1
  assert f'[1]   File "<string>", line {line} in <module>' in done.stderr
