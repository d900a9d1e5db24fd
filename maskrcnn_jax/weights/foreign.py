"""Weights of other programs, whatever their format.

A path is a file of tensors (see `tensor_files`) or the prefix of a TensorFlow
checkpoint (see `tensorflow`).
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import (
  detectron2,
  state_dicts,
  tensor_files,
  torchvision,
)
from maskrcnn_jax.weights import tensorflow as tensorflow_weights
from maskrcnn_jax.weights.account import WHOLE, Account, Fit
from maskrcnn_jax.weights.state_dicts import Recipe

# Who knows names of state dicts.
_SYSTEMS = (torchvision, detectron2)


def load(
  path: str | os.PathLike, variables: Mapping[str, Any], fit: Fit = WHOLE
) -> tuple[dict[str, Any], Account]:
  """Variables with every tensor that a file has for them.

  Weights of a backbone must cover exactly the backbone, those of a Mask R-CNN
  everything, unless `fit` says otherwise.

  Args:
    path: of a file, or the prefix of a TensorFlow checkpoint.
    variables: `params` and `batch_stats` of `MaskRCNN`, as nested dicts of
      arrays or `jax.ShapeDtypeStruct`s.
    fit: how much of the model they must cover.

  Returns:
    variables: the same structure, with float32 arrays of NumPy where loaded and
      the given ones elsewhere.
    account: what went where.

  Raises:
    FileNotFoundError: there is no such file.
    UnsafePickleError: it has something else than tensors and containers.
    ValueError: it cannot be read, or does not fit the model.
  """
  if is_tensorflow(path):
    return tensorflow_weights.load(path, variables, fit)
  file = tensor_files.read(path)
  form, _ = _find(file)
  return state_dicts.load(file, form, variables, fit)


def kind(path: str | os.PathLike) -> str:
  """What weights are of: `backbone` or `model`; raises as `load`."""
  if is_tensorflow(path):
    return tensorflow_weights.kind(path)
  form, _ = _find(tensor_files.read(path))
  return form.kind


def recipe(path: str | os.PathLike) -> Recipe:
  """The model that weights are of; raises as `load`."""
  if is_tensorflow(path):
    return Recipe(*tensorflow_weights.config(path))
  file = tensor_files.read(path)
  form, system = _find(file)
  try:
    return system.recipe(form, file.arrays)
  except ValueError as error:
    raise UserError(f'{file.path}: {error}') from error


def is_tensorflow(path: str | os.PathLike) -> bool:
  """Whether a path is to be read as the prefix of a TensorFlow checkpoint."""
  path = pathlib.Path(path)
  if path.suffix in ('.pth', '.pt', '.pkl', '.npz', '.safetensors', '.bin'):
    return False
  return not path.is_file() or tensorflow_weights.is_part(path)


def _find(file: tensor_files.Tensors):
  for system in _SYSTEMS:
    try:
      form = system.find_format(file.arrays)
    except ValueError as error:
      raise UserError(f'{file.path}: {error}') from error
    if form:
      return form, system
  raise state_dicts.unknown(file)
