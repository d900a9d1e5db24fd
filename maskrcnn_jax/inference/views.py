"""Parts of an image, mirrored or scaled, and what was found in them.

The network sees views; what it finds in them is brought back to pixels of the
image, and what several views show is merged by `merging`.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from maskrcnn_jax.evaluation import coco_results
from maskrcnn_jax.structures import Detections


@dataclasses.dataclass(frozen=True)
class View:
  """What the network is to see of an image.

  Attributes:
    pixels: `[height, width, 3]` uint8, as they lie in the image.
    start: (y, x) of their first pixel in the image, or in the reduced one.
    reduced: pixels of the image that one pixel covers, down and across.
    margins: (top, left, bottom, right) pixels along each side that only a cut
      object reaches, because the image goes on there; 0 where it does not.
    scale: how much larger than for an evaluation the network sees it.
    mirrored: whether left and right are exchanged for the network.
  """

  pixels: np.ndarray
  start: tuple[int, int] = (0, 0)
  reduced: int = 1
  margins: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
  scale: float = 1.0
  mirrored: bool = False

  @property
  def is_cut_out(self) -> bool:
    """Whether the image goes on beyond a side."""
    return any(self.margins)

  def seen(self) -> np.ndarray:
    """The pixels as the network sees them, before they are resized."""
    return self.pixels[:, ::-1] if self.mirrored else self.pixels

  def to_image(
    self, found: Detections, scales: np.ndarray, image_size: tuple[int, int]
  ) -> Detections:
    """What was found in a view, in pixels of the image.

    Args:
      found: the valid rows of the view, in input pixels.
      scales: `[2]` input pixels per pixel of the view, (y, x).
      image_size: (height, width) of the image.

    Returns:
      Detections in pixels of the image, without those that a side of the view
      cuts.
    """
    boxes = coco_results.original_boxes(found.boxes, scales)
    masks = found.masks
    if self.mirrored:
      y1, x1, y2, x2 = boxes.T
      width = np.float32(self.pixels.shape[1])
      boxes = np.stack([y1, width - x2, y2, width - x1], axis=-1)
      masks = None if masks is None else masks[:, :, ::-1]
    whole = self._are_whole(boxes)
    if self.start != (0, 0) or self.reduced > 1:
      boxes = (boxes + np.float32(self.start * 2)) * np.float32(self.reduced)
      # The last pixel of a reduced image may cover more than there is.
      boxes = np.minimum(boxes, np.float32(tuple(image_size) * 2))
    return Detections(
      boxes=boxes[whole],
      scores=found.scores[whole],
      classes=found.classes[whole],
      masks=None if masks is None else masks[whole],
      valid=np.ones(np.count_nonzero(whole), bool),
    )

  def _are_whole(self, boxes: np.ndarray) -> np.ndarray:
    """Which boxes `[n, 4]` in pixels of the view reach no side that cuts."""
    margins = np.array(self.margins)
    height, width = self.pixels.shape[:2]
    distances = np.array([0, 0, height, width]) - boxes
    distances[:, :2] *= -1  # How far inside its side every edge lies.
    return np.all((distances >= margins) | (margins == 0), axis=1)


def augment(
  view: View, scales: Sequence[float], mirror: bool
) -> Iterator[View]:
  """The view at every scale, each also mirrored if `mirror`."""
  for scale in scales:
    for mirrored in (False, True)[: 1 + mirror]:
      yield dataclasses.replace(view, scale=scale, mirrored=mirrored)
