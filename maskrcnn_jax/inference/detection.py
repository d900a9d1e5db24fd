"""Detection of objects in a batch, compiled for one device or for a mesh."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from maskrcnn_jax.distributed import mesh as mesh_lib
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.structures import Detections


@functools.partial(jax.jit, static_argnames='model')
def detect(
  model: MaskRCNN,
  variables: Mapping[str, Any],
  images: jax.Array,
  image_sizes: jax.Array,
) -> Detections:
  """Objects in a batch of images; compiled once per canvas and batch size.

  Args:
    model: to apply.
    variables: of the model, from `TrainState.variables` or `restore`.
    images: `[batch, height, width, 3]`, RGB in 0..255, uint8 or float32.
    image_sizes: `[batch, 2]`, height and width without padding.

  Returns:
    `[batch, max_detections]`, boxes in pixels of the canvas.
  """
  return model.apply(variables, images, image_sizes, method='detect')


def jit_detect(model: MaskRCNN, mesh) -> Callable[..., Detections]:
  """Compiled `detect` of variables, images and sizes on the devices of a mesh.

  The images are sharded; every device gets all variables and detections.

  Args:
    model: to apply.
    mesh: of `mesh.make_mesh`, possibly for ahead-of-time compilation.
  """
  replicated = mesh_lib.replicated(mesh)
  inputs = mesh_lib.input_shardings(mesh)
  return jax.jit(
    functools.partial(detect, model),
    in_shardings=(replicated, inputs['images'], inputs['image_sizes']),
    out_shardings=replicated,
  )
