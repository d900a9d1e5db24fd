"""Operations of detection for which a runtime may have operators of its own.

The model calls them through one field; `export.onnx_ops` replaces them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from maskrcnn_jax.ops import roi_align


@dataclasses.dataclass(frozen=True)
class Operations:
  """Non-maximum suppression and RoIAlign; by default those of `ops`.

  Attributes:
    keep: NMS as a mask: `keep(boxes, scores, valid, iou_threshold,
      max_outputs)` gives the bool `[groups, n]` of the boxes that are kept, of
      boxes `[groups, n, 4]`, positive scores and valid `[groups, n]`; of every
      group at least the `max_outputs` best of the kept ones are marked. None:
      `ops.nms`.
    roi_align: has the arguments of `ops.roi_align.pyramid_roi_align`.
  """

  keep: Callable[..., Any] | None = None
  roi_align: Callable[..., Any] = roi_align.pyramid_roi_align
