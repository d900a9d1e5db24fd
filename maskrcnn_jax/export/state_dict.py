"""Export of a checkpoint as a state dict of torchvision's Mask R-CNN."""

import os
from collections.abc import Iterator

from flax.traverse_util import flatten_dict

from maskrcnn_jax import config as config_lib
from maskrcnn_jax import override
from maskrcnn_jax.checkpoints import store
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.weights import tensor_files, torchvision

# The config whose detection equals torchvision's.
_TORCHVISION = 'coco:torchvision'
# Fields of a model that do not affect detection, or that the shapes of a state
# dict tell.
_IGNORED = (
  'train_proposals',
  'rpn_targets',
  'sampling',
  'losses',
  'mask_threshold',
  'dtype',
  'num_classes',
  'pyramid_channels',
  'rpn_convs',
  'box_convs',
  'box_dense',
  'box_channels',
  'mask_channels',
  'mask_convs',
  'head_norm',
  'backbone.depth',
  'backbone.width',
  'backbone.norm',
  'backbone.norm_momentum',
  'backbone.frozen_stages',
)
# Fields that torchvision's models do not have.
_IMPOSSIBLE = ('backbone.kind', 'bgr', 'backbone.stride_in_1x1')


def export_weights(source: str | os.PathLike, output: str | os.PathLike) -> str:
  """Writes a checkpoint as a state dict of torchvision's Mask R-CNN.

  Args:
    source: a workdir or one of its checkpoints.
    output: new file; `.pth`, `.safetensors` or `.npz`.

  Returns:
    The number of tensors, and the differences to torchvision's model.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    UserError: torchvision has no such model, or the file exists.
  """
  tensor_files.check_output(output)
  variables, config = store.restore(source)
  differences = dict(_differences(MaskRCNN.from_config(config.model)))
  impossible = [x for x in _IMPOSSIBLE if x in differences]
  if impossible:
    listed = ', '.join(differences[x] for x in impossible)
    raise UserError(
      f'{source} is not a model of torchvision: {listed}.',
      argument=f'model.{impossible[0]}',
      path=source,
    )
  tensors = torchvision.state_dict(variables)
  tensor_files.write(output, tensors)
  lines = [f'{len(tensors)} tensors of {source} -> {output}']
  if differences:
    lines.append(
      f"torchvision's detections will differ slightly: {len(differences)} "
      f'fields are not those of {_TORCHVISION}:'
    )
  return '\n'.join([*lines, *(f'  {x}' for x in differences.values())])


def _differences(model: MaskRCNN) -> Iterator[tuple[str, str]]:
  """Name and text of fields that make detection differ from torchvision's."""
  section = config_lib.load_config(_TORCHVISION).model
  fields, reference = (
    flatten_dict(override.as_dict(each), sep='.')
    for each in (model, MaskRCNN.from_config(section))
  )
  for name, value in fields.items():
    ignored = any(f'{name}.'.startswith(f'{x}.') for x in _IGNORED)
    if value != reference[name] and not ignored:
      yield name, f'model.{name} is {value}, torchvision has {reference[name]}'
