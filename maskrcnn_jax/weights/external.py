"""Weights of other programs: the entry for every format.

A path is a file of tensors (see `tensor_files`), the prefix of a TensorFlow
checkpoint (see `tensor_bundle`), or a name of public weights (see `published`).
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import (
  convnext,
  detectron2,
  download,
  load_report,
  prefixes,
  published,
  state_dicts,
  tensor_bundle,
  tensor_files,
  tensorflow,
  torchvision,
  vit,
)
from maskrcnn_jax.weights.load_report import STRICT, LoadOptions, LoadReport
from maskrcnn_jax.weights.state_dicts import Format, InferredModel

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
    path: a file, the prefix of a TensorFlow checkpoint, or a name.
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
  return load_report.load(*read(path), variables, options)


def kind(path: str | os.PathLike) -> str:
  """Kind of the weights, `backbone` or `model`; raises as `load`."""
  return read(path)[1].kind


def infer_model(path: str | os.PathLike) -> InferredModel:
  """The model that weights belong to; raises as `load`."""
  return state_dicts.infer_model(*read(path))


def read(path: str | os.PathLike) -> tuple[tensor_files.Tensors, Format]:
  """Tensors of a file and the format of their names; raises as `load`."""
  path = pathlib.Path(download.local(path))
  is_file = path.is_file() and not tensor_bundle.is_part(path)
  if is_file or path.suffix in tensor_files.SUFFIXES_READ:
    file = tensor_files.read(path)
  else:
    file = tensor_bundle.read(path)
  with tensor_files.naming(file.path):
    file = prefixes.without_wrappers(file)
    form = _find_format(file.arrays)
    if form is None:
      file = prefixes.without_prefix(file)
      form = _find_format(file.arrays)
    if form:
      return file, _with_published_facts(form, path.name)
    names = file.arrays
    mentioned = ', '.join(sorted(names)[:_NUM_MENTIONED])
    raise UserError(
      'it is neither a ResNet, ConvNeXt or ViT, nor a Mask R-CNN with names of '
      'torchvision, timm, Detectron2, Caffe2, Google, Habana or NVIDIA. It has '
      f'{len(names)} tensors: {mentioned}, ...',
      item=min(names, default=None),
    )


def _with_published_facts(form, name) -> Format:
  """The format of a file, with what is known of weights of this file name."""
  known = published.by_file(name)
  if known is None:
    return form
  fields = {x.partition('=')[0] for x in known.overrides}
  inferred = [x for x in form.overrides if x.partition('=')[0] not in fields]
  return dataclasses.replace(
    form, overrides=[*inferred, *known.overrides], assumed=()
  )


def _find_format(names) -> Format | None:
  systems = torchvision, detectron2, tensorflow, convnext, vit
  found = (system.find_format(names) for system in systems)
  return next(filter(None, found), None)
