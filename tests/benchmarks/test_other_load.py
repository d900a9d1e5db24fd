"""What other processes take of the CPUs: by hand, and with one that works."""

import os
import subprocess
import sys
import time

import pytest

from maskrcnn_jax.benchmarks import other_load

TICKS = os.sysconf('SC_CLK_TCK')
# Works for a while, says when it starts, waits to be ended.
_BUSY = (
  'import sys, time\n'
  'print("on", flush=True)\n'
  'end = time.process_time() + 0.6\n'
  'while time.process_time() < end: pass\n'
  'print("off", flush=True)\n'
  'sys.stdin.read()\n'
)


def test_busy_time_is_all_but_idle_and_waiting():
  # user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice.
  stat = 'cpu  100 20 30 9000 500 1 2 47 60 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n'
  assert other_load.busy_seconds(stat) == 200 / TICKS


def test_the_time_of_a_process_whose_name_looks_like_fields():
  fields = ['S', *['0'] * 10, '300', '100', '7', '3', '20']
  stat = f'42 (a) b (1 2) {" ".join(fields)}\n'
  assert other_load.process_seconds(stat) == 410 / TICKS


@pytest.mark.skipif(not os.path.exists('/proc/stat'), reason='needs Linux')
def test_only_what_is_not_ours_counts():
  with subprocess.Popen(
    [sys.executable, '-c', _BUSY],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as busy:
    busy.stdout.readline()
    load, with_it = other_load.OtherLoad(), other_load.OtherLoad([busy.pid])
    start = time.monotonic()
    busy.stdout.readline()
    others, rest = load.read(), with_it.read()
    wall = time.monotonic() - start
    busy.stdin.close()
  # The process took 0.6 s, but for what it did before the first reading. The
  # readings are some ms apart, in which others may work on both CPUs.
  assert others - rest == pytest.approx(0.6 / wall, rel=0.15, abs=0.05)
