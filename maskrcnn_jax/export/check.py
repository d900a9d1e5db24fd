"""Exported programs run as they are written, compared with their model.

A detection of the model is found again if the program has one of the same class
with nearly the same box, score and mask. Their order may differ, since equal
scores have none that rounding keeps.
"""

import io
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from maskrcnn_jax.datasets import images as image_files
from maskrcnn_jax.datasets import value_range
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.export import program
from maskrcnn_jax.input_pipeline import resizing, single_images
from maskrcnn_jax.models.mask_rcnn import MaskRCNN

# Largest differences: pixels of the canvas, scores, and probabilities of masks.
TOLERANCES = {'boxes': 1e-2, 'scores': 1e-4, 'masks': 1e-3}
_MAX_FILES = 8

Batch = tuple[np.ndarray, np.ndarray]


def draw(
  canvas: tuple[int, int], fit: tuple[int, int], image_dtype: str
) -> list[Batch]:
  """Images and image_sizes: one with shapes on noise, and one of faint noise.

  Args:
    canvas: (height, width).
    fit: (height, width) of the part that is image.
    image_dtype: 'uint8' or 'float32'.
  """
  rng = np.random.default_rng(0)
  rows, columns = np.mgrid[: fit[0], : fit[1]]
  scene = rng.normal(110, 20, (*fit, 3))
  for _ in range(12):
    center = rng.uniform(0, 1, 2) * fit
    sides = rng.uniform(0.05, 0.3, 2) * fit
    y, x = (rows - center[0]) / sides[0], (columns - center[1]) / sides[1]
    inside = y**2 + x**2 < 1 if rng.random() < 0.5 else abs(y) + abs(x) < 1
    scene[inside] = rng.uniform(0, 255, 3) + rng.normal(0, 8, (inside.sum(), 3))
  empty = rng.normal(128, 3, scene.shape)
  found = []
  for pixels in (scene, empty):
    image = np.zeros((*canvas, 3), image_dtype)
    image[: fit[0], : fit[1]] = np.clip(pixels, 0, 255)
    found.append((image, np.float32(fit)))
  return found


def read(
  paths: Sequence[str | os.PathLike],
  canvas: tuple[int, int],
  fit: tuple[int, int],
  image_dtype: str,
  resize: resizing.ResizeOptions,
) -> list[Batch]:
  """Images and image_sizes of the first files, and of those in folders."""
  found = []
  for path in paths:
    is_folder = pathlib.Path(path).is_dir()
    for file in image_files.find_in_folder(path) if is_folder else [path]:
      if len(found) == _MAX_FILES:
        return found
      try:
        image = image_files.decode(image_files.read_bytes(file), file)
      except UserError as error:
        message = f'--images: {file} {error}'
        raise UserError(message, argument='images', path=file) from error
      pixels = np.asarray(value_range.to_rgb(image))
      row = single_images.fit_image(pixels, canvas, fit, image_dtype, resize)
      found.append((row['images'], row['image_sizes']))
  if not found:
    raise UserError('--images names no image.', argument='images', given=paths)
  return found


def detect(
  model: MaskRCNN,
  weights: Mapping[str, np.ndarray],
  rows: Sequence[Sequence[Batch]],
  batch_size: int | None,
) -> list[list[dict[str, np.ndarray]]]:
  """Detections of the model itself, by canvas and batch, for `check`."""
  call = jax.jit(program.detect_function(model))
  return [
    [
      jax.tree.map(np.asarray, call(weights, *batch))
      for batch in _batches(examples, batch_size)
    ]
    for examples in rows
  ]


def check(
  folder: pathlib.Path,
  kind: str,
  about: Mapping[str, Any],
  rows: Sequence[Sequence[Batch]],
  wanted: Callable[[], list[list[dict[str, np.ndarray]]]],
) -> list[dict[str, Any]] | None:
  """Differences between the programs of a format and their model.

  Args:
    folder: of the export.
    kind: format, see `exporter.FORMATS`.
    about: content of `export.json`.
    rows: images and image_sizes for every canvas.
    wanted: gives the detections of `detect`.

  Returns:
    Per canvas the number of images and detections, and the largest differences;
    None if the programs are not for a CPU.

  Raises:
    UserError: a difference is above its tolerance.
  """
  if kind != 'onnx' and 'cpu' not in about['platforms']:
    return None
  figures = []
  for entry, examples, expected in zip(about['canvases'], rows, wanted()):
    run = _RUNS[kind](folder, entry)
    found = [run(*x) for x in _batches(examples, about['batch_size'])]
    figures.append(
      {
        'canvas': entry['canvas'],
        'images': len(examples),
        **_compare(zip(found, expected, strict=True)),
      }
    )
    _check_tolerances(figures[-1], kind)
  return figures


def _batches(rows, batch_size) -> Iterator[Batch]:
  """Batches of rows; the last one is filled up with the first rows."""
  size = batch_size or min(len(rows), 2)
  for start in range(0, len(rows), size):
    chosen = [rows[i % len(rows)] for i in range(start, start + size)]
    images, sizes = zip(*chosen)
    yield np.stack(images), np.stack(sizes)


def _run_stablehlo(folder, entry) -> Callable[..., Any]:
  data = bytearray((folder / entry['program']).read_bytes())
  with np.load(io.BytesIO((folder / 'weights.npz').read_bytes())) as stored:
    stored = dict(stored)
  call = jax.jit(export.deserialize(data).call)
  return lambda *batch: call(stored, *batch)


def _run_saved_model(folder, entry) -> Callable[..., Any]:
  import tensorflow as tf

  model = tf.saved_model.load(os.fspath(folder / 'saved_model'))
  call = model.signatures[entry['signature']]

  def run(images, image_sizes):
    found = call(
      images=tf.constant(images), image_sizes=tf.constant(image_sizes)
    )
    return {name: value.numpy() for name, value in found.items()}

  run.model = model  # Its variables live as long as it does.
  return run


def _run_onnx(folder, entry) -> Callable[..., Any]:
  import onnxruntime

  session = onnxruntime.InferenceSession(
    os.fspath(folder / entry['onnx']), providers=['CPUExecutionProvider']
  )
  names = [output.name for output in session.get_outputs()]

  def run(images, image_sizes):
    inputs = {'images': images, 'image_sizes': image_sizes}
    return dict(zip(names, session.run(names, inputs)))

  return run


_RUNS = {
  'stablehlo': _run_stablehlo,
  'saved_model': _run_saved_model,
  'onnx': _run_onnx,
}


def _compare(pairs) -> dict[str, Any]:
  """Largest differences of detections of batches, and those not found again."""
  figures = {'detections': 0, 'missing': 0, 'added': 0}
  figures |= dict.fromkeys(TOLERANCES, 0.0)
  for found, wanted in pairs:
    found, wanted = (
      {name: np.asarray(value) for name, value in x.items()}
      for x in (found, wanted)
    )
    for image in range(len(wanted['valid'])):
      _compare_image(
        *({k: v[image] for k, v in x.items()} for x in (found, wanted)),
        figures,
      )
  return figures


def _compare_image(found, wanted, figures):
  """Adds the differences of one image."""
  left = np.flatnonzero(found['valid']).tolist()
  missing = []
  for row in np.flatnonzero(wanted['valid']):
    same = [i for i in left if found['classes'][i] == wanted['classes'][row]]
    gaps = [abs(found['boxes'][i] - wanted['boxes'][row]).max() for i in same]
    if not gaps or min(gaps) > TOLERANCES['boxes']:
      missing.append(row)
      continue
    other = same[int(np.argmin(gaps))]
    left.remove(other)
    for name in TOLERANCES:
      gap = abs(found[name][other] - wanted[name][row]).max()
      figures[name] = max(figures[name], float(gap))
  figures['detections'] += int(wanted['valid'].sum())
  # With no row left, another of the lowest score may take one's place.
  is_full = found['valid'].all() and wanted['valid'].all()
  cut = wanted['scores'].min() + TOLERANCES['scores'] if is_full else -1.0
  figures['missing'] += int(np.sum(wanted['scores'][missing] > cut))
  figures['added'] += int(np.sum(found['scores'][left] > cut))


def _check_tolerances(figures, kind):
  limits = {**TOLERANCES, 'missing': 0, 'added': 0}
  wrong = {k: figures[k] for k, v in limits.items() if not figures[k] <= v}
  if wrong:
    texts = [f'{k} {v:.2g} (at most {limits[k]:g})' for k, v in wrong.items()]
    raise UserError(
      f'--format {kind}: the program for {figures["canvas"]} does not give the '
      f'detections of the model: {", ".join(texts)}. Nothing was written.',
      argument='format',
      item=str(figures['canvas']),
      given=figures,
      wanted=limits,
    )
