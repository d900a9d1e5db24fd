"""Weights of other programs: the entry for every format.

A path is a file of tensors (see `tensor_files`) or the prefix of a TensorFlow
checkpoint (see `tensorflow`).
"""

import contextlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import (
  detectron2,
  state_dicts,
  tensor_files,
  tensorflow,
  torchvision,
)
from maskrcnn_jax.weights.load_report import STRICT, LoadOptions, LoadReport
from maskrcnn_jax.weights.state_dicts import InferredModel

# Names that an error lists.
_NUM_MENTIONED = 5


def load(
  path: str | os.PathLike,
  variables: Mapping[str, Any],
  options: LoadOptions = STRICT,
) -> tuple[dict[str, Any], LoadReport]:
  """Variables with the tensors of a weight file.

  Weights of a backbone must cover the whole backbone, those of a Mask R-CNN the
  whole model, unless `options` allow less.

  Args:
    path: a file, or the prefix of a TensorFlow checkpoint.
    variables: `params` and `batch_stats` of `MaskRCNN`, as nested dicts of
      arrays or `jax.ShapeDtypeStruct`s.
    options: how much of the model the weights must cover.

  Returns:
    variables: the same structure, with float32 NumPy arrays where loaded and
      the given arrays elsewhere.
    report: what was loaded and what was not.

  Raises:
    FileNotFoundError: there is no such file.
    UnsafePickleError: a pickle holds more than tensors and containers.
    UserError: the file cannot be read, or does not fit the model.
  """
  if _is_tensorflow(path):
    return tensorflow.load(path, variables, options)
  file, form = _read(path)
  return state_dicts.load(file, form, variables, options)


def kind(path: str | os.PathLike) -> str:
  """Kind of the weights, `backbone` or `model`; raises as `load`."""
  if _is_tensorflow(path):
    return tensorflow.kind(path)
  return _read(path)[1].kind


def infer_model(path: str | os.PathLike) -> InferredModel:
  """The model that weights belong to; raises as `load`."""
  if _is_tensorflow(path):
    return tensorflow.infer_model(path)
  file, form = _read(path)
  with _naming(file.path):
    return state_dicts.infer_model(form, file.arrays)


@contextlib.contextmanager
def _naming(path):
  """Adds the path to the errors of the block."""
  try:
    yield
  except UserError as error:
    raise UserError(f'{path}: {error}', path=path) from error


def _is_tensorflow(path) -> bool:
  """True for a path that is read as the prefix of a TensorFlow checkpoint."""
  path = pathlib.Path(path)
  if path.suffix in ('.pth', '.pt', '.pkl', '.npz', '.safetensors', '.bin'):
    return False
  return not path.is_file() or tensorflow.is_part(path)


def _read(path):
  """Tensors of a file and the format of their names."""
  file = tensor_files.read(path)
  for system in (torchvision, detectron2):
    with _naming(file.path):
      form = system.find_format(file.arrays)
    if form:
      return file, form
  names = sorted(file.arrays)
  raise UserError(
    f'{file.path} is neither a ResNet nor a Mask R-CNN with names of '
    f'torchvision, timm, Detectron2 or Caffe2. It has {len(names)} tensors: '
    f'{", ".join(names[:_NUM_MENTIONED])}, ...',
    path=file.path,
    item=names[0] if names else None,
  )
