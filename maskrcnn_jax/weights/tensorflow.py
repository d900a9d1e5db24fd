"""Reads TensorFlow checkpoints: backbones, and whole Mask R-CNNs.

A checkpoint is named by its prefix, `model.ckpt-112603` for the files
`model.ckpt-112603.index` and `model.ckpt-112603.data-00000-of-00001`. Read are
those that name every tensor (TensorFlow 1, also inside of a SavedModel) and
those of Keras, whose object graph knows the names. TensorFlow is imported when
the first one is read.
"""

import dataclasses
import difflib
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import account as account_lib
from maskrcnn_jax.weights import tensorflow_names
from maskrcnn_jax.weights.account import Account

_SUFFIX = re.compile(r'\.(index|meta|data-\d{5}-of-\d{5})$')
# Where Keras and tf.train.Checkpoint keep what their keys stand for.
_OBJECT_GRAPH = '_CHECKPOINTABLE_OBJECT_GRAPH'
_VALUE = '/.ATTRIBUTES/VARIABLE_VALUE'
# As many names as an error mentions.
_NUM_MENTIONED = 5
# There the kernel is [height, width, out, in].
_DECONV = 'mask_head/deconv/kernel'


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
  """An open checkpoint.

  Attributes:
    prefix: of its files.
    reader: of TensorFlow.
    keys: name of a variable -> what the reader calls it.
    layout: how it names its variables.
  """

  prefix: str
  reader: Any
  keys: Mapping[str, str]
  layout: tensorflow_names.Layout


def load(
  prefix: str | os.PathLike,
  variables: Mapping[str, Any],
  fit: account_lib.Fit = account_lib.WHOLE,
) -> tuple[dict[str, Any], Account]:
  """Variables with every tensor that a TensorFlow checkpoint has for them.

  A checkpoint of a backbone must cover exactly the backbone, one of a Mask
  R-CNN everything.

  Args:
    prefix: of the checkpoint, such as `resnet/model.ckpt-112603`; or a folder
      with a file `checkpoint` that names it.
    variables: `params` and `batch_stats` of `MaskRCNN`, as nested dicts of
      arrays or `jax.ShapeDtypeStruct`s.
    fit: how much of the model the checkpoint must cover.

  Returns:
    variables: the same structure, with float32 arrays of NumPy where loaded and
      the given ones elsewhere.
    account: what went where.

  Raises:
    ValueError: there is no such checkpoint, it cannot be read, or it does not
      fit the model.
  """
  checkpoint = _open(prefix)
  ours = account_lib.flatten(variables)
  _check_norm(ours)
  names = checkpoint.layout.names(ours)
  arrays = _read(checkpoint, names)
  others = sorted(checkpoint.keys.keys() - set(names.values()))
  bookkeeping = [x for x in others if tensorflow_names.is_bookkeeping(x)]
  surplus = [x for x in others if x not in set(bookkeeping)]
  filled, misfits, left_over = account_lib.fill(
    variables,
    arrays,
    names,
    checkpoint.prefix,
    excess=[x for x in surplus if checkpoint.layout.is_layer(x)],
    fit=fit,
  )
  return filled, Account(
    source=pathlib.Path(checkpoint.prefix).name,
    kind=checkpoint.layout.kind,
    loaded={k: v for k, v in names.items() if k not in misfits},
    surplus=[x for x in surplus if x not in left_over],
    bookkeeping=bookkeeping,
    initial=[name for name in ours if name not in names],
    misfits=misfits,
    left_over=left_over,
  )


def kind(prefix: str | os.PathLike) -> str:
  """What a TensorFlow checkpoint is of: `backbone` or `model`.

  Args:
    prefix: as in `load`.

  Raises:
    ValueError: there is no such checkpoint, or it is of something else.
  """
  return _open(prefix).layout.kind


def config(prefix: str | os.PathLike) -> tuple[str, list[str]]:
  """The shipped config of the model that a checkpoint is of, and overrides.

  Args:
    prefix: as in `load`.

  Raises:
    ValueError: there is no such checkpoint, or it is of something else.
  """
  checkpoint = _open(prefix)
  shapes = checkpoint.reader.get_variable_to_shape_map()
  overrides = []
  for name, key in checkpoint.keys.items():
    if name.endswith('box_head/class-predict/bias'):
      overrides = [f'model.num_classes={shapes[key][0]}']
  return checkpoint.layout.config, overrides


def is_part(path: str | os.PathLike) -> bool:
  """Whether a file is one of those of a TensorFlow checkpoint, by its name."""
  return _SUFFIX.search(os.fspath(path)) is not None


def _check_norm(names):
  """Raises if a norm of the backbone has no statistics: group norm."""
  for name in names:
    scope, _, leaf = name.rpartition('/')
    is_norm = name.startswith('backbone/') and leaf == 'scale'
    if is_norm and f'{scope}/mean' not in names:
      raise UserError(
        f'TensorFlow checkpoints hold batch norm, and {scope} is group norm: '
        "set model.backbone.norm to 'frozen' or 'batch'."
      )


def _read(checkpoint, names):
  """Our name -> array in our layout, of those that the checkpoint has."""
  arrays = {}
  for name, theirs in names.items():
    if theirs not in checkpoint.keys:
      continue
    tensor = _tensor(
      checkpoint.prefix, checkpoint.reader, checkpoint.keys[theirs]
    )
    array = np.asarray(tensor)
    swap = name == _DECONV and array.ndim == 4
    arrays[name] = np.swapaxes(array, 2, 3) if swap else array
  return arrays


def _tensor(prefix, reader, key):
  import tensorflow as tf

  try:
    return reader.get_tensor(key)
  except (tf.errors.OpError, IndexError) as error:  # IndexError: cut short.
    files = sorted(map(str, _siblings(prefix, '.data-*')))
    if not files:
      raise UserError(
        f'{prefix}.index has no data beside it: {prefix}.data-00000-of-00001 '
        'is not there.'
      ) from error
    raise UserError(
      f'{key} cannot be read from {", ".join(files)}, which may be damaged or '
      f'not wholly copied: {error}'
    ) from error


def _open(prefix) -> _Checkpoint:
  import tensorflow as tf

  prefix = _find(os.fspath(prefix))
  try:
    reader = tf.train.load_checkpoint(prefix)
  except (tf.errors.OpError, IndexError) as error:
    raise UserError(
      f'{prefix}.index cannot be read, it may be damaged or not wholly copied: '
      f'{error}'
    ) from error
  keys = {key: key for key in reader.get_variable_to_shape_map()}
  if _OBJECT_GRAPH in keys:
    keys = _names_of_keys(_tensor(prefix, reader, _OBJECT_GRAPH), keys)
  layout = tensorflow_names.find_layout(keys)
  if layout is None:
    mentioned = ', '.join(sorted(keys)[:_NUM_MENTIONED])
    raise UserError(
      f'{prefix} is neither a ResNet nor a Mask R-CNN with names of Google, '
      f'Habana or NVIDIA. It has {len(keys)} tensors: {mentioned}, ...'
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
  # The optimizer's arrays keep their keys, which say whose they are.
  return {
    key.removesuffix(_VALUE)
    if tensorflow_names.is_bookkeeping(key)
    else full_names.get(key) or key.removesuffix(_VALUE): key
    for key in sorted(keys)
  }


def _find(given) -> str:
  """The prefix of a checkpoint whose index file is there."""
  if pathlib.Path(given).is_dir():
    return _find_in_folder(pathlib.Path(given))
  prefix = _SUFFIX.sub('', given)
  if pathlib.Path(f'{prefix}.index').is_file():
    return prefix
  path = pathlib.Path(prefix)
  if not path.parent.is_dir():
    raise UserError(
      f'There is no checkpoint {prefix}: {path.parent} is no folder.'
    )
  there = _prefixes(path.parent)
  if path.is_file():
    raise UserError(
      f'{prefix} is no TensorFlow checkpoint: {prefix}.index is not there. '
      f'{_found(path.parent, there)}'
    )
  close = difflib.get_close_matches(path.name, there, n=3, cutoff=0.5)
  raise UserError(
    f'There is no checkpoint {prefix}: {prefix}.index is not there. '
    f'{_found(path.parent, close or there)}'
  )


def _find_in_folder(folder) -> str:
  """The prefix that the state file of a folder names."""
  there = _prefixes(folder)
  state = folder / 'checkpoint'
  if not state.is_file():
    raise UserError(
      f'{folder} is a folder without a file `checkpoint`; give the prefix of a '
      f'checkpoint. {_found(folder, there)}'
    )
  named = re.search(
    r'^model_checkpoint_path:\s*"(.*)"', state.read_text(), re.MULTILINE
  )
  # An absolute path is of the machine that wrote it.
  name = named and pathlib.PurePath(named[1]).name
  if name not in there:
    raise UserError(
      f'{state} names the checkpoint {name}, which is not there. '
      f'{_found(folder, there)}'
    )
  return str(folder / name)


def _prefixes(folder):
  return sorted(path.stem for path in folder.glob('*.index'))


def _found(folder, prefixes):
  if not prefixes:
    return f'{folder} holds no checkpoint.'
  more = ', ...' if len(prefixes) > _NUM_MENTIONED else ''
  return f'{folder} holds {", ".join(prefixes[:_NUM_MENTIONED])}{more}.'


def _siblings(prefix, pattern):
  path = pathlib.Path(prefix)
  return path.parent.glob(path.name + pattern)
