"""Peaks: the highest of several, and that they are measured."""

from maskrcnn_jax.benchmarks import peaks


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
  assert peaks.highest(first, second) == {
    'flops': {'float32': 5.0, 'bfloat16': 9.0},
    'gemm_side': {'float32': 8, 'bfloat16': 32},
    'bandwidth': 3.0,
  }


def test_small_products_and_copies():
  found = peaks.measure_peaks(rounds=2, sides=(64, 256), copy_bytes=2**22)
  assert found['flops'].keys() == set(peaks.DTYPES)
  # From a slow core to more than any device has.
  assert all(1e7 < rate < 1e17 for rate in found['flops'].values())
  assert 1e7 < found['bandwidth'] < 1e14
  assert set(found['gemm_side'].values()) <= {64, 256}
