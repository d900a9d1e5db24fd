"""Detection lowered to a StableHLO program of plain arrays."""

from collections.abc import Mapping, Sequence
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


def export_detection(
  model: MaskRCNN,
  weights: Mapping[str, np.ndarray],
  canvas: tuple[int, int],
  batch_size: int | None,
  image_dtype: str,
  platforms: Sequence[str],
  for_tensorflow: bool = False,
) -> export.Exported:
  """Detection on one canvas, lowered for all the platforms together.

  The program takes (weights, images, image_sizes) and returns a dict of
  `OUTPUTS`. Weights are arguments: as constants every program would have its
  own copy, on disk and on the device.

  Args:
    model: to be exported.
    weights: of `flatten_weights`; only shapes and dtypes count.
    canvas: (height, width).
    batch_size: None: any; the program is then compiled for each batch size
      that it is called with.
    image_dtype: 'uint8' or 'float32'.
    platforms: names known to `jax.export`.
    for_tensorflow: lower `top_k` to a sort, with the same results: TensorFlow
      2.21 cannot read the `top_k` of jax 0.10.
  """

  def detect(weights, images, image_sizes):
    variables = flax.traverse_util.unflatten_dict(weights, sep='/')
    found = model.apply(
      {'batch_stats': {}, **variables}, images, image_sizes, method='detect'
    )
    return {name: getattr(found, name) for name in OUTPUTS}

  batch = (
    export.symbolic_shape('batch')[0] if batch_size is None else batch_size
  )
  shapes = (
    {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in weights.items()},
    jax.ShapeDtypeStruct((batch, *canvas, 3), np.dtype(image_dtype)),
    jax.ShapeDtypeStruct((batch, 2), np.float32),
  )
  rules = None
  if for_tensorflow:
    rules = ((jax.lax.top_k_p, mlir.lower_fun(_sorted_top_k)),)
  return export.export(
    jax.jit(detect),
    platforms=tuple(platforms),
    _override_lowering_rules=rules,
  )(*shapes)


def _sorted_top_k(x, *, k, **_):
  """`lax.top_k` along the last axis, by sorting all of it."""
  indices = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
  # Of equal values the lower index comes first, as a stable sort leaves it.
  negated, indices = jax.lax.sort((-x, indices), num_keys=1, is_stable=True)
  return [-negated[..., :k], indices[..., :k]]
