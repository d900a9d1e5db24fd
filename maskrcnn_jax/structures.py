"""Padded bundles of arrays that pass between the stages, each with `valid`.

Every bundle is a pytree of fixed shapes, so it passes through `jit` and `vmap`.
A row whose `valid` is False is padding: zeros that no reduction may include.
Boxes are `(y1, x1, y2, x2)`, float32, in pixels of the network's input.
"""

from collections.abc import Mapping
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
    mask_pasting: rule by which masks cover pixels of an image, see
      `evaluation.mask_pasting`.
  """

  boxes: Array
  scores: Array
  classes: Array
  masks: Array
  valid: Array
  mask_pasting: str = flax.struct.field(
    pytree_node=False, default='whole_pixels'
  )

  def image(self, index: int) -> 'Detections':
    """The valid rows of one image, as NumPy arrays without a batch axis."""
    keep = np.asarray(self.valid[index])
    return jax.tree.map(lambda x: np.asarray(x[index])[keep], self)

  def run_lengths(self, image_size: tuple[int, int]) -> list[dict[str, Any]]:
    """Masks of one image as COCO's compressed run lengths.

    Here and below the detections are those of one image, without a batch axis
    or padding, in its pixels, as `Predictor` returns them.

    Args:
      image_size: (height, width).
    """
    from maskrcnn_jax.evaluation import mask_pasting

    counts = mask_pasting.encode_masks(
      self.masks, self.boxes, image_size, self.mask_pasting
    )
    return [{'size': [*image_size], 'counts': text} for text in counts]

  def full_masks(self, image_size: tuple[int, int]) -> np.ndarray:
    """Masks of one image, `[n, height, width]` bool; see `run_lengths`."""
    from maskrcnn_jax.evaluation import mask_pasting

    return mask_pasting.paste_masks(
      self.masks, self.boxes, image_size, self.mask_pasting
    )

  def polygons(
    self, image_size: tuple[int, int], tolerance: float = 0.0
  ) -> list[list]:
    """Parts of every mask of one image, the largest first, with their holes.

    Args:
      image_size: see `run_lengths`.
      tolerance: see `datasets.outlines.find_parts`.

    Returns:
      For each detection a list of `datasets.outlines.Part`; empty for a mask
      without a pixel.
    """
    from maskrcnn_jax.datasets import outlines

    runs = self.run_lengths(image_size)
    return [outlines.of_run_lengths(each, tolerance) for each in runs]

  def to_supervision(
    self,
    image_size: tuple[int, int],
    class_names: Mapping[int, str] | None = None,
  ):
    """Detections of one image as `supervision.Detections`.

    Args:
      image_size: see `run_lengths`.
      class_names: by class id; given as `data['class_name']`.

    Raises:
      ImportError: the package supervision, which this one does not require, is
        not installed.
    """
    import supervision

    data = {}
    if class_names is not None:
      names = [class_names.get(x, str(x)) for x in self.classes.tolist()]
      data['class_name'] = np.array(names)
    masks = None if self.masks is None else self.full_masks(image_size)
    return supervision.Detections(
      xyxy=self.boxes[:, [1, 0, 3, 2]],
      mask=masks,
      confidence=self.scores,
      class_id=self.classes,
      data=data,
    )
