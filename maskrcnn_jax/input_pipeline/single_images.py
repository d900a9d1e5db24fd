"""Canvases of detection, and single images on them, in NumPy.

The batches of an evaluation hold the same rows, bit for bit; of JPEG files with
`input.accurate_jpeg`, whose pixels are those of Pillow.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maskrcnn_jax.input_pipeline import order, resizing


def detection_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
  """`canvases` and `resize` of detection, as `eval_batches` takes them.

  They are those of the section `evaluation` if it names canvases, and of the
  input otherwise.

  Args:
    config: of a run; with a section `input`.

  Raises:
    UserError: `evaluation.fit_size` does not fit into a canvas, or there is no
      such field in `input.resize`.
  """
  inputs, own = config['input'], config.get('evaluation') or {}
  resize = dict(inputs.get('resize') or {})
  if not own.get('canvases'):
    return {'canvases': tuple(map(tuple, inputs['canvases'])), 'resize': resize}
  canvases = tuple(map(tuple, own['canvases']))
  resize['fit_size'] = own.get('fit_size')
  for canvas in canvases:
    options = resizing.resize_options(resize)
    resizing.fit_size(canvas, options, 'evaluation.fit_size')
  return {'canvases': canvases, 'resize': resize}


def choose_canvas(
  image_size: tuple[int, int], fits: Sequence[tuple[int, int]]
) -> int:
  """Index of the canvas that shrinks an image least.

  Args:
    image_size: (height, width).
    fits: (height, width) that an image may fill on each canvas.
  """
  heights, widths = np.reshape(image_size, [2, 1])
  return int(order.assign_canvases(heights, widths, fits)[0])


def fit_image(
  image: np.ndarray,
  canvas: tuple[int, int],
  fit: tuple[int, int],
  image_dtype: str,
  options: resizing.ResizeOptions,
) -> dict[str, np.ndarray]:
  """A row of a batch.

  Args:
    image: `[h, w, 3]` uint8.
    canvas: (height, width).
    fit: (height, width) that the image may fill of it.
    image_dtype: 'uint8' (rounded) or 'float32'; both 0..255.
    options: of the size.

  Returns:
    `images` `[height, width, 3]`, `image_sizes` `[2]` float32,
    `original_sizes` `[2]` int32 and `scales` `[2]` float32.
  """
  original = np.int32(image.shape[:2])
  size, scales = resizing.resized_size(original, fit, options.exact_sizes)
  height, width = size.tolist()
  pixels = resizing.resize(image, (height, width))
  if image_dtype == 'uint8':
    pixels += np.float32(0.5)  # Rounds; the cast truncates.
  images = np.zeros((*canvas, 3), image_dtype)
  images[:height, :width] = pixels
  return {
    'images': images,
    'image_sizes': size.astype(np.float32),
    'original_sizes': original,
    'scales': scales,
  }
