"""What was measured against what the machine could do at best."""

from typing import Any

from maskrcnn_jax.benchmarks import measure


def add_floors(result: dict[str, Any]) -> None:
  """Adds to every measured program its floor, from the peaks of the run.

  Args:
    result: see `bench.bench`; changed in place. What has a `program` and
      `seconds` gets `floor` (see `measure.floor`) of its operations and of the
      bytes that any program must move, arguments and outputs; `gap_seconds`,
      the median less the floor; `traffic_seconds`, what the bytes take that
      this program moves, without caches; and `peak_share`, operations a second
      over the peak.
  """
  peak = peak_flops(result)
  bandwidth = result['peaks']['bandwidth']
  for row in _programs(result):
    work, median = row['program'], row['seconds']['median']
    row['floor'] = measure.floor(
      work['flops'], work['memory']['least_moved'], peak, bandwidth
    )
    row['traffic_seconds'] = work['bytes_accessed'] / bandwidth
    row['gap_seconds'] = median - row['floor']['seconds']
    row['peak_share'] = work['flops'] / median / peak


def peak_flops(result: dict[str, Any]) -> float:
  """Operations a second of a device, in the type of the model's products."""
  dtype = result['subject']['dtype']
  kind = 'float32' if dtype == 'float32' else 'bfloat16'
  return result['peaks']['flops'][kind]


def largest_gap(stages: list[dict[str, Any]]) -> dict[str, Any]:
  """The stage that is furthest from its floor, in seconds."""
  return max(stages, key=lambda stage: stage['gap_seconds'])


def _programs(result):
  """All that was measured with a program."""
  for name in ('step', 'inference', 'backbone'):
    if name in result:
      yield result[name]['ours']
  for stages in result.get('stages', {}).values():
    yield from stages
  for row in result.get('growth', []):
    if row['program']:
      yield row
