"""Drift: relative difference of the losses of runs from those of the first.

python docs/plot_drift.py OUTPUT.png WORKDIR WORKDIR ...
"""

import json
import pathlib
import sys

from matplotlib.figure import Figure

_FLOOR = 1e-8  # Drawn for equal losses, since the axis is logarithmic.


def losses(workdir):
  """step -> total loss of a run."""
  text = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  key = 'train/total_loss'
  return {line['step']: line[key] for line in lines if key in line}


def main(output, first, *others):
  """Draws the figure; prints the largest difference of each run."""
  expected = losses(first)
  figure = Figure((5, 2.8), dpi=90, layout='tight')
  axes = figure.subplots()
  for workdir, style in zip(others, ('o-', 'x--', '+:')):
    actual = losses(workdir)
    drift = [abs(actual[step] / expected[step] - 1) for step in expected]
    print(f'{workdir}: at most {max(drift):.1e}')
    name = pathlib.Path(workdir).name
    axes.semilogy(
      [*expected], [max(x, _FLOOR) for x in drift], style, label=name
    )
  axes.axhline(1e-2, color='grey', linewidth=0.5)
  axes.set(xlabel='step', ylabel='relative difference of the loss')
  axes.legend()
  figure.savefig(output)


if __name__ == '__main__':
  main(*sys.argv[1:])
