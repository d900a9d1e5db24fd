"""Draws the loss and the mask AP of several runs.

python docs/plot_finetuning.py OUTPUT.png WORKDIR WORKDIR ...
"""

import json
import pathlib
import sys

import matplotlib.pyplot as plt


def curve(workdir, key):
  """Steps and values of a metric of a run."""
  text = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  points = {line['step']: line[key] for line in lines if key in line}
  return [*points], [*points.values()]


def main(output, *workdirs):
  """Draws the figure and prints the last values of each run."""
  keys = {'train/total_loss': 'loss', 'eval/mask_AP': 'mask AP'}
  _, axes = plt.subplots(1, 2, figsize=(7, 2.8))
  for axis, (key, label) in zip(axes, keys.items()):
    for workdir, style in zip(workdirs, ('o-', 'x--', '+:')):
      name = pathlib.Path(workdir).name.replace('_', ' ')
      steps, values = curve(workdir, key)
      axis.plot(steps, values, style, label=name, markersize=4)
      print(f'{name}: {label} {values[-1]:.3f} after {steps[-1]} steps')
    axis.set_xlabel('step')
    axis.set_title(label)
  axes[1].set_ylim(bottom=0)
  axes[1].legend()
  plt.tight_layout()
  plt.savefig(output, dpi=90)


if __name__ == '__main__':
  main(*sys.argv[1:])
