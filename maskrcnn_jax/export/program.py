"""Detection lowered to a StableHLO program of plain arrays."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.interpreters import mlir

from maskrcnn_jax.models.mask_rcnn import MaskRCNN

OUTPUTS = ('boxes', 'scores', 'classes', 'masks', 'valid')


def flatten_weights(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Variables by path, such as `params/fpn/output2/kernel`."""
  flat = flax.traverse_util.flatten_dict(variables, sep='/')
  return {name: np.asarray(flat[name]) for name in sorted(flat)}


def in_float32(model: MaskRCNN) -> MaskRCNN:
  """The model in float32, the precision of ONNX files."""
  align = dataclasses.replace(model.roi_align, dtype=None)
  return model.clone(dtype='float32', roi_align=align)


def detect_function(model: MaskRCNN) -> Callable[..., dict[str, jax.Array]]:
  """Detection as a function of weights by path, images and image_sizes."""

  def detect(weights, images, image_sizes):
    variables = flax.traverse_util.unflatten_dict(weights, sep='/')
    found = model.apply(
      {'batch_stats': {}, **variables}, images, image_sizes, method='detect'
    )
    return {name: getattr(found, name) for name in OUTPUTS}

  return detect


def input_shapes(
  weights: Mapping[str, np.ndarray],
  canvas: tuple[int, int],
  batch_size: int | None,
  image_dtype: str,
) -> tuple[Any, ...]:
  """Shapes of weights, images and image_sizes; `batch` if it is None."""
  batch = (
    export.symbolic_shape('batch')[0] if batch_size is None else batch_size
  )
  return (
    {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in weights.items()},
    jax.ShapeDtypeStruct((batch, *canvas, 3), np.dtype(image_dtype)),
    jax.ShapeDtypeStruct((batch, 2), np.float32),
  )


def output_shapes(
  model: MaskRCNN, shapes: Sequence[Any]
) -> dict[str, tuple[list[int | str], str]]:
  """Shape and dtype of every output, for `input_shapes` of any canvas."""
  outputs = jax.eval_shape(detect_function(model), *shapes)
  return {
    name: (
      [n if isinstance(n, int) else str(n) for n in output.shape],
      str(output.dtype),
    )
    for name, output in outputs.items()
  }


def export_detection(
  model: MaskRCNN,
  shapes: Sequence[Any],
  platforms: Sequence[str],
  for_tensorflow: bool = False,
) -> export.Exported:
  """Detection on one canvas, lowered for all the platforms together.

  The program takes (weights, images, image_sizes) and returns a dict of
  `OUTPUTS`. Weights are arguments: as constants every program would have its
  own copy, on disk and on the device.

  Args:
    model: to be exported.
    shapes: of `input_shapes`. With any batch size the program is compiled for
      each that it is called with.
    platforms: names known to `jax.export`.
    for_tensorflow: lower `top_k` to a sort, with the same results: TensorFlow
      2.21 cannot read the `top_k` of jax 0.10.
  """
  rules = None
  if for_tensorflow:
    rules = ((jax.lax.top_k_p, mlir.lower_fun(_sorted_top_k)),)
  return export.export(
    jax.jit(detect_function(model)),
    platforms=tuple(platforms),
    _override_lowering_rules=rules,
  )(*shapes)


def _sorted_top_k(x, *, k, **_):
  """`lax.top_k` along the last axis, by sorting all of it."""
  indices = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
  # Of equal values the lower index comes first, as a stable sort leaves it.
  negated, indices = jax.lax.sort((-x, indices), num_keys=1, is_stable=True)
  return [-negated[..., :k], indices[..., :k]]
