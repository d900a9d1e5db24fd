"""Padded bundles of arrays that pass between the stages, each with `valid`.

Every bundle is a pytree of fixed shapes, so it passes through `jit` and `vmap`.
A row whose `valid` is False is padding: zeros that no reduction may include.
Boxes are `(y1, x1, y2, x2)`, float32, in pixels of the network's input.
"""

from typing import Any

import flax.struct
import jax
import numpy as np

# jax.Array inside traced code, np.ndarray on the host.
Array = Any


@flax.struct.dataclass
class Instances:
  """Ground truth of a batch.

  Attributes:
    boxes: `[batch, num_instances, 4]`.
    classes: `[batch, num_instances]` int32, 1..num_classes-1.
    masks: `[batch, num_instances, size, size]`, each mask cut to its box; uint8
      0..255 or float32 0..1.
    valid: `[batch, num_instances]` bool.
  """

  boxes: Array
  classes: Array
  masks: Array
  valid: Array


@flax.struct.dataclass
class Proposals:
  """Regions that may hold an object, best first.

  Attributes:
    boxes: `[batch, num_proposals, 4]`.
    scores: `[batch, num_proposals]`, objectness in [0, 1].
    valid: `[batch, num_proposals]` bool.
  """

  boxes: Array
  scores: Array
  valid: Array


@flax.struct.dataclass
class SampledRois:
  """Regions the RoI heads are trained on; foreground rows come first.

  Attributes:
    boxes: `[batch, num_rois, 4]`.
    classes: `[batch, num_rois]` int32, 0 for background.
    instance_indices: `[batch, num_rois]` int32, the matched instance; 0 for
      background.
    valid: `[batch, num_rois]` bool.
  """

  boxes: Array
  classes: Array
  instance_indices: Array
  valid: Array

  def first(self, num_rois: int) -> 'SampledRois':
    """The first `num_rois` rows of every image."""
    return jax.tree.map(lambda x: x[:, :num_rois], self)


@flax.struct.dataclass
class Detections:
  """Objects found in a batch, best first.

  Attributes:
    boxes: `[batch, num_detections, 4]`.
    scores: `[batch, num_detections]` in [0, 1].
    classes: `[batch, num_detections]` int32, 1..num_classes-1.
    masks: `[batch, num_detections, size, size]`, probabilities over the box;
      None for a model without a mask head.
    valid: `[batch, num_detections]` bool.
  """

  boxes: Array
  scores: Array
  classes: Array
  masks: Array
  valid: Array

  def image(self, index: int) -> 'Detections':
    """The valid rows of one image, as NumPy arrays without a batch axis."""
    keep = np.asarray(self.valid[index])
    return jax.tree.map(lambda x: np.asarray(x[index])[keep], self)
