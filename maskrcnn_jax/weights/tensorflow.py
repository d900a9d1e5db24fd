"""TensorFlow checkpoints of backbones and of whole Mask R-CNNs.

A checkpoint is named by its prefix: `model.ckpt-112603` for the files
`model.ckpt-112603.index` and `model.ckpt-112603.data-00000-of-00001`. Both
forms are read: named tensors (TensorFlow 1, also in a SavedModel) and Keras
checkpoints, whose object graph has the names. TensorFlow is imported on first
use.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskrcnn_jax.errors import UserError, did_you_mean
from maskrcnn_jax.weights import load_report, tensorflow_names
from maskrcnn_jax.weights.state_dicts import InferredModel

_SUFFIX = re.compile(r'\.(index|meta|data-\d{5}-of-\d{5})$')
# Key of the object graph of Keras and tf.train.Checkpoint.
_OBJECT_GRAPH = '_CHECKPOINTABLE_OBJECT_GRAPH'
_VALUE = '/.ATTRIBUTES/VARIABLE_VALUE'
# Names that an error lists.
_NUM_MENTIONED = 5
# TensorFlow's kernel is [height, width, out, in].
_DECONV = 'mask_head/deconv/kernel'


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
  """An open checkpoint.

  Attributes:
    prefix: of its files.
    reader: of TensorFlow.
    keys: name of a variable -> key of the reader.
    layout: naming scheme of its variables.
  """

  prefix: str
  reader: Any
  keys: Mapping[str, str]
  layout: tensorflow_names.Layout


def load(
  prefix: str | os.PathLike,
  variables: Mapping[str, Any],
  options: load_report.LoadOptions = load_report.STRICT,
) -> tuple[dict[str, Any], load_report.LoadReport]:
  """Variables with the tensors of a TensorFlow checkpoint; see `external.load`.

  Args:
    prefix: of the checkpoint, such as `resnet/model.ckpt-112603`; or a folder
      whose file `checkpoint` names it.
    variables: as in `external.load`.
    options: how much of the model the checkpoint must cover.
  """
  checkpoint = _open(prefix)
  ours = load_report.flatten(variables)
  _check_norm(ours)
  names = checkpoint.layout.names(ours)
  others = sorted(checkpoint.keys.keys() - set(names.values()))
  is_training_state = tensorflow_names.is_training_state
  unexpected = [x for x in others if not is_training_state(x)]
  weights = load_report.Weights(
    path=checkpoint.prefix,
    kind=checkpoint.layout.kind,
    arrays=_read(checkpoint, names),
    names=names,
    unexpected=unexpected,
    layers=[x for x in unexpected if checkpoint.layout.is_layer(x)],
    training_state=[x for x in others if is_training_state(x)],
  )
  return load_report.load_variables(variables, weights, options)


def kind(prefix: str | os.PathLike) -> str:
  """Kind of a checkpoint, `backbone` or `model`; raises as `load`."""
  return _open(prefix).layout.kind


def infer_model(prefix: str | os.PathLike) -> InferredModel:
  """The model that a checkpoint belongs to; raises as `load`."""
  checkpoint = _open(prefix)
  shapes = checkpoint.reader.get_variable_to_shape_map()
  overrides = []
  for name, key in checkpoint.keys.items():
    if name.endswith('box_head/class-predict/bias'):
      overrides = [f'model.num_classes={shapes[key][0]}']
  return InferredModel(checkpoint.layout.config, overrides)


def is_part(path: str | os.PathLike) -> bool:
  """True for the name of a file that is part of a TensorFlow checkpoint."""
  return _SUFFIX.search(os.fspath(path)) is not None


def _check_norm(names):
  """Refuses a backbone with group norm, which has no statistics."""
  for name in names:
    scope, _, leaf = name.rpartition('/')
    is_norm = name.startswith('backbone/') and leaf == 'scale'
    if is_norm and f'{scope}/mean' not in names:
      raise UserError(
        f'TensorFlow checkpoints hold batch norm, but {scope} is group norm: '
        "set model.backbone.norm to 'frozen' or 'batch'.",
        argument='model.backbone.norm',
        given='group',
        wanted=('frozen', 'batch'),
      )


def _read(checkpoint, names):
  """Our name -> array in our layout, where the checkpoint has the tensor."""
  arrays = {}
  for name, theirs in names.items():
    if theirs not in checkpoint.keys:
      continue
    key = checkpoint.keys[theirs]
    array = np.asarray(_tensor(checkpoint.prefix, checkpoint.reader, key))
    swap = name == _DECONV and array.ndim == 4
    arrays[name] = np.swapaxes(array, 2, 3) if swap else array
  return arrays


def _tensor(prefix, reader, key):
  import tensorflow as tf

  try:
    return reader.get_tensor(key)
  except (tf.errors.OpError, IndexError) as error:  # IndexError: truncated.
    path = pathlib.Path(prefix)
    files = sorted(map(str, path.parent.glob(f'{path.name}.data-*')))
    if not files:
      wanted = f'{prefix}.data-00000-of-00001'
      raise UserError(
        f'{prefix}.index exists, but {wanted} does not.', path=wanted
      ) from error
    raise UserError(
      f'{key} cannot be read from {", ".join(files)}, which may be corrupt or '
      f'truncated: {error}',
      path=files[0],
      item=key,
    ) from error


def _open(prefix) -> _Checkpoint:
  import tensorflow as tf

  prefix = _find(os.fspath(prefix))
  try:
    reader = tf.train.load_checkpoint(prefix)
  except (tf.errors.OpError, IndexError) as error:
    raise UserError(
      f'{prefix}.index cannot be read; it may be corrupt or truncated: {error}',
      path=f'{prefix}.index',
    ) from error
  keys = {key: key for key in reader.get_variable_to_shape_map()}
  if _OBJECT_GRAPH in keys:
    keys = _names_of_keys(_tensor(prefix, reader, _OBJECT_GRAPH), keys)
  layout = tensorflow_names.find_layout(keys)
  if layout is None:
    mentioned = ', '.join(sorted(keys)[:_NUM_MENTIONED])
    raise UserError(
      f'{prefix} is neither a ResNet nor a Mask R-CNN with names of Google, '
      f'Habana or NVIDIA. It has {len(keys)} tensors: {mentioned}, ...',
      path=prefix,
      item=min(keys, default=None),
    )
  return _Checkpoint(prefix, reader, keys, layout)


def _names_of_keys(graph, keys):
  """Name of a variable -> key, by the object graph of a checkpoint."""
  from tensorflow.core.protobuf import trackable_object_graph_pb2

  proto = trackable_object_graph_pb2.TrackableObjectGraph.FromString(graph)
  full_names = {
    attribute.checkpoint_key: attribute.full_name
    for node in proto.nodes
    for attribute in node.attributes
  }
  # Only the keys of the optimizer's arrays tell that they are the optimizer's.
  return {
    key.removesuffix(_VALUE)
    if tensorflow_names.is_training_state(key)
    else full_names.get(key) or key.removesuffix(_VALUE): key
    for key in sorted(keys)
  }


def _find(given) -> str:
  """Prefix of an existing checkpoint, or of the one that a folder names."""
  path = pathlib.Path(_SUFFIX.sub('', given))
  why = f'{path}.index does not exist'
  if path.is_dir():
    state = path / 'checkpoint'
    text = state.read_text() if state.is_file() else ''
    named = re.search(r'^model_checkpoint_path:\s*"(.*)"', text, re.MULTILINE)
    # An absolute path belongs to the machine that wrote it.
    path /= named[1].rpartition('/')[2] if named else 'checkpoint'
    why = f'{state} {"names it" if named else "is missing; give a prefix"}'
  if pathlib.Path(f'{path}.index').is_file():
    return str(path)
  if not path.parent.is_dir():
    why = f'{path.parent} is not a folder'
  there = sorted(x.stem for x in path.parent.glob('*.index'))
  listed = ', '.join(there[:_NUM_MENTIONED]) or 'no checkpoint'
  more = ', ...' if len(there) > _NUM_MENTIONED else ''
  raise UserError(
    f'There is no checkpoint {path}: {why}{did_you_mean(path.name, there)} '
    f'{path.parent} has {listed}{more}.',
    path=path,
    wanted=there,
  )
