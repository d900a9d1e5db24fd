"""Images and labels of a run, as a command names them."""

import dataclasses
import json
from typing import Any

from maskrcnn_jax.datasets.formats import class_names
from maskrcnn_jax.datasets.formats.source import Source
from maskrcnn_jax.datasets.labelled import LabelOptions

TRAIN, VAL = 'train', 'val'


@dataclasses.dataclass(frozen=True)
class RunData(LabelOptions):
  """Images and labels of a run.

  Attributes:
    images: folder of the images.
    annotations: file or folder of the labels.
    val_images: folder of the validation images; None: that of `images`.
    val_annotations: their labels; None: images are held out.
    val_share: of the images to hold out; 0: none.
    val_seed: see `holdout.hold_out`.
    drop_outside: see `prepare.prepare`.
  """

  images: str
  annotations: str
  val_images: str | None = None
  val_annotations: str | None = None
  val_share: float = 0.2
  val_seed: int = 0
  drop_outside: bool = False

  def sources(self) -> dict[str, Source]:
    """Images and labels by the name of their part."""
    found = {TRAIN: self.source(self.images, self.annotations)}
    if self.val_annotations:
      val_images = self.val_images or self.images
      found[VAL] = self.source(val_images, self.val_annotations)
    return found

  def options(self) -> dict[str, Any]:
    """What changes records of the same files: values by flag, as in a JSON."""
    holds_out = not self.val_annotations and self.val_share
    classes = self.classes and class_names.read(self.classes)
    options = {
      '--val_annotations': bool(self.val_annotations),
      '--val_share': float(self.val_share) if holds_out else None,
      '--val_seed': self.val_seed if holds_out else None,
      '--format': self.data_format,
      '--classes': classes and list(classes.items()),
      '--allow_outside': self.allow_outside,
      '--drop_outside': self.drop_outside,
      '--exif': self.exif,
      '--value_range': self.value_range,
    }
    return json.loads(json.dumps(options))
