"""Results of the benchmarks as tables."""

from typing import Any

from maskrcnn_jax.tables import number, table

_NAMES = {
  'step': 'train step',
  'inference': 'inference',
  'backbone': 'backbone, forward and backward',
}
_SIDES = {
  'ours': 'maskrcnn_jax',
  'torchvision': 'torchvision',
  'torchvision_free': 'torchvision, free-running',
}


def text(result: dict[str, Any]) -> str:
  """Markdown tables of everything that was measured.

  Args:
    result: see `bench.bench`.
  """
  parts = [_heading(result), table(_peak_cells(result))]
  rows = [
    cells
    for name in _NAMES
    if name in result
    for cells in _side_cells(result, name)
  ]
  parts.append(table(rows))
  return '\n\n'.join(part for part in parts if part)


def _heading(result) -> str:
  machine, subject = result['machine'], result['subject']
  height, width = subject['canvas']
  other = result.get('torchvision')
  beside = ''
  if other:
    layout = ', channels_last' if other['channels_last'] else ''
    beside = (
      f', beside torchvision {other["torchvision"]}, torch {other["torch"]}'
      f'{layout}, {other["threads"]} threads'
    )
  return (
    f'{machine["devices"]} x {machine["device"]}, {machine["cpus"]} CPUs, jax '
    f'{machine["jax"]}{beside}. Batches of {subject["batch_size"]} at '
    f'{height}x{width}, {subject["dtype"]}, {subject["num_classes"]} classes, '
    f'images: {subject["images"]}. Load before {machine["load_before"]:.1f}.'
  )


def _peak_cells(result) -> list[dict[str, str]]:
  peaks = result['peaks']
  cells = {
    f'{dtype} GFLOP/s': number(rate, 1e9)
    for dtype, rate in peaks['flops'].items()
  }
  return [{**cells, 'copy GB/s': number(peaks['bandwidth'], 1e9)}]


def peak_flops(result: dict[str, Any]) -> float:
  """Operations a second of a device, for the dtype of the model's products."""
  dtype = result['subject']['dtype']
  kind = 'float32' if dtype == 'float32' else 'bfloat16'
  return result['peaks']['flops'][kind]


def peak_share(result: dict[str, Any], name: str) -> float:
  """Share of the measured peak that a subject reaches, 0..1.

  Args:
    result: see `bench.bench`.
    name: of the subject.
  """
  ours = result[name]['ours']
  rate = ours['program']['flops'] / ours['seconds']['median']
  return rate / peak_flops(result)


def _side_cells(result, name) -> list[dict[str, str]]:
  """A row for every side of a subject."""
  rows = []
  for side, label in _SIDES.items():
    values = result[name].get(side)
    if values is None:
      continue
    seconds, ratio = values['seconds'], result[name].get('ratios', {}).get(side)
    rows.append(
      {
        'what': _NAMES[name],
        'side': label,
        'ms': number(seconds['median'], 1e-3),
        'lowest': number(seconds['lowest'], 1e-3),
        'highest': number(seconds['highest'], 1e-3),
        'images/s': number(values['images_per_second']),
        'our time / theirs': (
          f'{ratio["median"]:.3f} ({ratio["lowest"]:.3f} to '
          f'{ratio["highest"]:.3f})'
          if ratio
          else '-'
        ),
        'GFLOP': (
          number(values['program']['flops'], 1e9) if side == 'ours' else '-'
        ),
        'of peak': (
          f'{peak_share(result, name):.1%}' if side == 'ours' else '-'
        ),
      }
    )
  return rows
