"""Stand-in for torchvision's side where torch is not installed.

Uses the real protocol, with handlers that check their input. `install` writes
an interpreter that runs this file, whatever script it is given.
"""

import importlib.util
import os
import pathlib
import sys

import numpy as np


def install(folder: pathlib.Path) -> str:
  """An executable for `--against`."""
  path = folder / 'python'
  path.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} "$@"\n')
  path.chmod(0o755)
  return str(path)


class Side:
  """Answers of the form of `torchvision_side.Side`, made from the input."""

  def set_up(self, model, threads, optimizer):
    print('this must not reach the answers')
    self._model = model
    assert optimizer['lr'] > 0
    return {
      'torch': '0',
      'torchvision': '0',
      'device': 'none',
      'threads': threads,
    }

  def load_weights(self, path):
    with np.load(path) as arrays:
      self._weights = {name: arrays[name] for name in arrays.files}
    return {}

  def load_batches(self, path, batch_size):
    height, width = self._model['canvas']
    counts = []
    with np.load(path) as arrays:
      for number in range(len(arrays.files) // 4):
        assert arrays[f'image/{number}'].shape == (height, width, 3)
        counts.append(len(arrays[f'boxes/{number}']))
        wanted = (counts[-1], height, width // 8)
        assert arrays[f'masks/{number}'].shape == wanted
    self._counts = np.reshape(counts, [-1, batch_size])
    return {'batches': len(self._counts)}

  def train_step(self, number, foreground):
    counts = self._counts[number % len(self._counts)]
    found = [foreground] * len(counts)
    if foreground is None:
      found = counts.tolist()
    return {'seconds': 0.25, 'losses': {'mask': 1.0}, 'foreground': found}

  def detect(self, number):
    counts = self._counts[number % len(self._counts)]
    background = self._weights['roi_heads.box_predictor.cls_score.bias'][0]
    return {
      'seconds': 0.5,
      'pasting_seconds': 0.125,
      'detections': [round(float(background))] * len(counts),
    }

  def backbone(self, number):
    if number < 0:
      raise ValueError('rounds count from 0')
    return {'seconds': 0.125}

  def usage(self):
    return {'peak_memory': 2**30, 'cpu_seconds': 0.0}

  def die(self):
    print('killed: out of memory', file=sys.stderr)
    sys.stderr.flush()
    os._exit(9)


def main():
  spec = importlib.util.spec_from_file_location('side', sys.argv[1])
  side = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(side)
  side.Side = Side
  side.main()


if __name__ == '__main__':
  main()
