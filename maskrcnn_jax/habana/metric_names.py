"""Metric names of Habana's and NVIDIA's systems.

Tools that read their logs find these names in TensorBoard
(`training.summary_every_steps`) and in `training.log_file`.
"""

from collections.abc import Mapping

# Their name -> our metrics, whose values are added up.
_LOGGED = {
  'FastRCNN box loss': ('box',),
  'FastRCNN class loss': ('class',),
  'FastRCNN total loss': ('box', 'class'),
  'L2 loss': ('l2_loss',),
  'Learning rate': ('learning_rate',),
  'Mask loss': ('mask',),
  'RPN box loss': ('rpn_box',),
  'RPN score loss': ('rpn_objectness',),
  'RPN total loss': ('rpn_box', 'rpn_objectness'),
  'Total loss': ('total_loss',),
}
_TENSORBOARD = {
  'train/l2_loss': ('l2_loss',),
  'train/mask_loss': ('mask',),
  'train/total_loss': ('total_loss',),
  'train/rpn_box_loss': ('rpn_box',),
  'train/rpn_score_loss': ('rpn_objectness',),
  'train/rpn_total_loss': ('rpn_box', 'rpn_objectness'),
  'train/fastRCNN_class_loss': ('class',),
  'train/fastRCNN_box_loss': ('box',),
  'train/fastRCNN_total_loss': ('box', 'class'),
  'train/learning_rate': ('learning_rate',),
  'loss': ('total_loss',),
}


def logged(values: Mapping[str, float]) -> dict[str, float]:
  """Metrics of a step under the names of their log."""
  return _renamed(values, _LOGGED)


def tensorboard(values: Mapping[str, float]) -> dict[str, float]:
  """Metrics of a step under the names of their TensorBoard."""
  return _renamed(values, _TENSORBOARD)


def _renamed(values, names):
  if not values:
    return {}
  return {
    theirs: sum(float(values[name]) for name in ours)
    for theirs, ours in names.items()
  }


def evaluated(values: Mapping[str, float]) -> dict[str, float]:
  """Numbers of an evaluation, with their `accuracy`: the mask AP."""
  if not values:
    return {}
  name = 'eval/mask_AP' if 'eval/mask_AP' in values else 'eval/AP'
  return {**values, 'accuracy': values[name]}
