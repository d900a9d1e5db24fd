"""SavedModels for TensorFlow, from the same programs."""

import os
import types
from collections.abc import Mapping

import jax
import numpy as np
import tensorflow as tf
from jax import export

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.input_pipeline import reader


def check() -> types.ModuleType:
  """The module `jax2tf`; raises `UserError` if this JAX has none."""
  try:
    from jax.experimental import jax2tf
  except ImportError as error:
    raise UserError(
      f'--format saved_model needs jax.experimental.jax2tf, which jax '
      f'{jax.__version__} lacks ({error}): export with jax 0.8 to 0.12, or '
      'choose --format stablehlo.',
      argument='format',
      given=jax.__version__,
    ) from error
  return jax2tf


def write(
  folder: str | os.PathLike,
  programs: Mapping[str, export.Exported],
  weights: Mapping[str, np.ndarray],
) -> None:
  """Writes a SavedModel with one signature per program.

  The weights are its variables, shared by all signatures. `serving_default` is
  the first program.

  Args:
    folder: to create.
    programs: of `program.export_detection`, `for_tensorflow`, by the name of
      the signature.
    weights: of `program.flatten_weights`.

  Raises:
    UserError: TensorFlow cannot read the programs of this JAX.
  """
  reader.set_up_tensorflow(None)
  module = tf.Module()
  module.weights = [tf.Variable(x, trainable=False) for x in weights.values()]
  names = tuple(weights)
  signatures = {
    name: _signature(program, module, names)
    for name, program in programs.items()
  }
  signatures['serving_default'] = signatures[next(iter(programs))]
  tf.saved_model.save(module, os.fspath(folder), signatures=signatures)


def _signature(program, module, names):
  """The program as a TensorFlow function of images and image_sizes."""
  *_, images, image_sizes = program.in_avals
  batch = images.shape[0]
  shapes = None
  if export.is_symbolic_dim(batch):
    height, width = images.shape[1:3]
    shapes = [None, f'batch, {height}, {width}, 3', 'batch, 2']
    batch = None
  call = check().convert(
    program.call,
    polymorphic_shapes=shapes,
    with_gradient=False,
    native_serialization_platforms=program.platforms,
  )

  signature = [
    tf.TensorSpec((batch, *images.shape[1:]), images.dtype, 'images'),
    tf.TensorSpec((batch, 2), image_sizes.dtype, 'image_sizes'),
  ]

  @tf.function(input_signature=signature, autograph=False)
  def detect(images, image_sizes):
    return call(dict(zip(names, module.weights)), images, image_sizes)

  _check_readable(call, dict(zip(names, module.weights)), signature)
  return detect.get_concrete_function()


def _check_readable(call, weights, signature):
  """Raises `UserError` if TensorFlow cannot read the program."""
  inputs = [
    tf.zeros([2 if n is None else n for n in spec.shape], spec.dtype)
    for spec in signature
  ]
  reads = tf.function(
    lambda *inputs: call(weights, *inputs), autograph=False, jit_compile=True
  )
  try:
    # Parses the program; nothing is compiled for a device.
    reads.experimental_get_compiler_ir(*inputs)(stage='hlo')
  except ValueError as error:
    if 'deserialize' not in str(error):
      raise
    raise UserError(
      f'TensorFlow {tf.__version__} cannot read the SavedModels of jax '
      f'{jax.__version__}: export with an older jax (0.10) or a newer '
      'TensorFlow, or choose --format stablehlo.',
      argument='format',
      given=jax.__version__,
    ) from error
