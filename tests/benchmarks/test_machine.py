"""Peaks, rooflines and the load of other processes."""

import os
import subprocess
import sys
import time

import pytest

from maskrcnn_jax.benchmarks import machine

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
  assert machine.busy_seconds(stat) == 200 / TICKS


def test_the_time_of_a_process_whose_name_looks_like_fields():
  fields = ['S', *['0'] * 10, '300', '100', '7', '3', '20']
  stat = f'42 (a) b (1 2) {" ".join(fields)}\n'
  assert machine.process_seconds(stat) == 410 / TICKS


@pytest.mark.skipif(not os.path.exists('/proc/stat'), reason='needs Linux')
def test_only_what_is_not_ours_counts():
  with subprocess.Popen(
    [sys.executable, '-c', _BUSY],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as busy:
    busy.stdout.readline()
    load, with_it = machine.OtherLoad(), machine.OtherLoad([busy.pid])
    start = time.monotonic()
    busy.stdout.readline()
    others, rest = load.read(), with_it.read()
    wall = time.monotonic() - start
    busy.stdin.close()
  # The process took 0.6 s, but for what it did before the first reading. The
  # readings are some ms apart, in which others may work on both CPUs.
  assert others - rest == pytest.approx(0.6 / wall, rel=0.15, abs=0.05)


def test_the_highest_of_each():
  first = {
    'flops': {'float32': 5.0, 'bfloat16': 6.0},
    'gemm_side': {'float32': 8, 'bfloat16': 16},
    'bandwidth': 3.0,
  }
  second = {
    'flops': {'float32': 4.0, 'bfloat16': 9.0},
    'gemm_side': {'float32': 16, 'bfloat16': 32},
    'bandwidth': 2.0,
  }
  assert machine.highest(first, second) == {
    'flops': {'float32': 5.0, 'bfloat16': 9.0},
    'gemm_side': {'float32': 8, 'bfloat16': 32},
    'bandwidth': 3.0,
  }


def test_small_products_and_copies():
  found = machine.measure_peaks(rounds=2, sides=(64, 256), copy_bytes=2**22)
  assert found['flops'].keys() == set(machine.DTYPES)
  # From a slow core to more than any device has.
  assert all(1e7 < rate < 1e17 for rate in found['flops'].values())
  assert 1e7 < found['bandwidth'] < 1e14
  assert set(found['gemm_side'].values()) <= {64, 256}


def _program(flops, least_moved, accessed):
  return {
    'flops': flops,
    'bytes_accessed': accessed,
    'memory': {'least_moved': least_moved},
  }


@pytest.mark.parametrize(
  'dtype, share',
  [('float32', 0.25), ('bfloat16', 0.125), ('bfloat16_products', 0.125)],
)
def test_a_floor_is_the_longer_of_work_and_what_must_be_moved(dtype, share):
  step = {'seconds': {'median': 4.0}, 'program': _program(100e9, 20e9, 30e9)}
  result = {
    'subject': {'dtype': dtype},
    'peaks': {
      'flops': {'float32': 100e9, 'bfloat16': 200e9},
      'bandwidth': 10e9,
    },
    'step': {'ours': step},
    'growth': [{'seconds': None, 'program': None}],
  }
  machine.add_floors(result)
  # 2 s to move 20 GB, of 4 s; 100 GFLOP in 4 s.
  assert step['floor']['seconds'] == 2.0
  assert step['floor']['bound'] == 'memory'
  assert step['gap_seconds'] == 2.0
  assert step['traffic_seconds'] == 3.0
  assert step['peak_share'] == share
  assert 'floor' not in result['growth'][0]
