"""Weights and images of the recordings of Detectron2's models.

The weights are not stored: each tensor follows from its name and shape. The
photographs are COCO's; `MASKRCNN_TEST_DATA` has them.
"""

import dataclasses
import hashlib
import json
import pathlib
import zlib

import golden_files
import numpy as np
import pytest
from PIL import Image

from maskrcnn_jax.weights import coco_classes

# Ids of COCO by Detectron2's class; the background is the last one there.
CLASS_IDS = np.array([*sorted(coco_classes.NAMES), 0])


def spec(tag):
  """The recorded names, shapes and constants of the weights of a model."""
  path = golden_files.folder() / 'detectron2' / f'weights_spec_{tag}.json'
  return json.loads(path.read_text())


def state_dict(tag):
  """The recorded weights of a model, under Detectron2's names."""
  recorded = spec(tag)
  norms = {
    x['name'].rpartition('.')[0]
    for x in recorded['tensors']
    if x['name'].endswith('.weight') and len(x['shape']) == 1
  }
  return {
    x['name']: formula(x['name'], x['shape'], norms, recorded)
    for x in recorded['tensors']
  }


def formula(name, shape, norms, recorded):
  """The recorded values of a tensor.

  Args:
    name: of Detectron2.
    shape: in Detectron2.
    norms: scopes of normalisation layers.
    recorded: of `spec`.
  """
  scope, _, leaf = name.rpartition('.')
  if leaf == 'num_batches_tracked':
    return np.int64(0)
  seed = zlib.crc32(name.encode())
  values = np.random.RandomState(seed).standard_normal(shape)
  if len(shape) >= 2:
    # The recorded sums tell that ViTDet's blocks are not centred.
    if name.endswith(tuple(recorded['centred'])) and '.mlp.' not in name:
      axes = tuple(range(1, len(shape)))
      values -= values.mean(axis=axes, keepdims=True)
    is_transposed = name.endswith(tuple(recorded['transposed']))
    fan_in = shape[0] if is_transposed else np.prod(shape[1:])
    gains = (gain for part, gain in recorded['gains'] if part in name)
    values *= next(gains, 1.0) * np.sqrt(2 / fan_in)
  elif scope in norms:
    values = {
      'weight': 1 + 0.05 * values,
      'bias': 0.05 * values,
      'running_mean': 0.05 * values,
      'running_var': 1 + 0.1 * np.abs(values),
    }[leaf]
  else:
    values *= 0.01
    if name == 'roi_heads.box_predictor.cls_score.bias':
      values[-1] += recorded['background']
  return values.astype(np.float32)


def image(name, digest, source='detectron2'):
  """RGB `[height, width, 3]` uint8 of a recorded image, at network size.

  Skips the test if neither the recordings nor `MASKRCNN_TEST_DATA` have it.

  Args:
    name: of its file, such as `coco_294_213x320.png`.
    digest: SHA-256 of its bytes.
    source: folder of the recordings.
  """
  path = golden_files.folder() / source / 'images' / name
  kind, number, size = pathlib.Path(name).stem.split('_')
  if path.is_file():
    pixels = np.asarray(Image.open(path).convert('RGB'))
  elif kind == 'coco':
    height, width = map(int, size.split('x'))
    photo = golden_files.photograph(int(number))
    photo = photo.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(photo)
  else:
    pytest.skip(f'There is no {path}.')
  if hashlib.sha256(pixels.tobytes()).hexdigest() != digest:
    pytest.skip(f'{name} is resized differently by this Pillow.')
  return pixels


def on_canvas(pixels, canvas=None):
  """An image on its canvas: `[height, width, 3]` float32, and its size.

  Args:
    pixels: RGB `[height, width, 3]`.
    canvas: (height, width); None: the next multiples of 32.
  """
  size = np.array(pixels.shape[:2])
  if canvas is None:
    canvas = -(-size // 32) * 32
  padding = [(0, int(a - b)) for a, b in zip(canvas, size)]
  padded = np.pad(pixels.astype(np.float32), [*padding, (0, 0)])
  return padded, size.astype(np.float32)


def with_sampling(model, sampling):
  """The model with a recorded sampling: `s0`, adaptive, or `s2`, 2x2 a bin."""
  options = {
    's0': model.roi_align,
    's2': dataclasses.replace(
      model.roi_align, samples_per_bin=2, adaptive_side=None
    ),
  }
  return model.clone(roi_align=options[sampling])
