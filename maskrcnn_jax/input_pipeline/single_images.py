"""Canvases of detection, and single images on them.

The batches of an evaluation hold the same rows.

The steps are those of `transforms`, so the pixels are equal bit by bit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from maskrcnn_jax.datasets import images
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.input_pipeline import decode, order, reader, transforms


def decode_file(encoded: bytes) -> np.ndarray:
  """RGB pixels, `[h, w, 3]` uint8, of a JPEG or PNG file, as it is stored.

  Raises:
    UserError: it is over the budget, or TensorFlow cannot decode it; says why.
  """
  images.check_encoded(encoded)
  reader.set_up_tensorflow(None)
  try:
    return decode.decode_image(encoded).numpy()
  except tf.errors.OpError as error:
    raise UserError(reader.plain_message(error)) from error


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
    options = transforms.resize_options(resize)
    transforms.fit_size(canvas, options, 'evaluation.fit_size')
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
  options: transforms.ResizeOptions,
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
  reader.set_up_tensorflow(None)
  canvas = tf.constant(canvas, tf.int32)
  example = transforms.resize(
    {'image': tf.constant(image)},
    canvas,
    tf.constant(fit, tf.int32),
    tf.constant(False),
    options,
  )
  image = transforms.finish_image(example.pop('image'), image_dtype)
  image = transforms.pad_image(image, canvas)
  return {k: v.numpy() for k, v in {'images': image, **example}.items()}
