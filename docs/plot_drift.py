"""Draws how far the losses of runs are from those of the first one.

python docs/plot_drift.py OUTPUT.png WORKDIR WORKDIR ... (needs matplotlib)
"""

import json
import pathlib
import sys

import matplotlib.pyplot as plt

_FLOOR = 1e-8  # Equal losses, on an axis of logarithms.


def losses(workdir):
  """step -> total loss of a run."""
  text = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  key = 'train/total_loss'
  return {line['step']: line[key] for line in lines if key in line}


def main(output, first, *others):
  """Draws the figure; prints the largest difference of each run."""
  expected = losses(first)
  plt.figure(figsize=(5, 2.8))
  for workdir, style in zip(others, ('o-', 'x--', '+:')):
    actual = losses(workdir)
    drift = [abs(actual[step] / expected[step] - 1) for step in expected]
    print(f'{workdir}: at most {max(drift):.1e}')
    name = pathlib.Path(workdir).name
    plt.semilogy(
      [*expected], [max(x, _FLOOR) for x in drift], style, label=name
    )
  plt.axhline(1e-2, color='grey', linewidth=0.5)
  plt.xlabel('step')
  plt.ylabel('relative difference of the loss')
  plt.legend()
  plt.tight_layout()
  plt.savefig(output, dpi=90)


if __name__ == '__main__':
  main(*sys.argv[1:])
