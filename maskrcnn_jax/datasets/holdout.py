"""Validation images held out of a data set."""

import collections
import hashlib

from maskrcnn_jax.datasets.coco_json import CocoDataset
from maskrcnn_jax.errors import UserError, invalid


def hold_out(dataset: CocoDataset, share: float, seed: int = 0) -> list[int]:
  """Ids of the images to validate on, in the order of the data set.

  A hash of seed and file name decides, so that an image stays on its side when
  others are added. Every class keeps an image to train on, so fewer may be held
  out than the share.

  Args:
    dataset: all images.
    share: of the images to hold out, above 0 and below 1; at least one image.
    seed: another one gives other images.

  Raises:
    UserError: the share is out of range, or no image with an object is left to
      validate on.
  """
  if not 0 < share < 1:
    raise invalid('val_share', share, 'above 0 and below 1')
  classes = {
    image.image_id: _classes(image, dataset) for image in dataset.images
  }
  left = collections.Counter(each for some in classes.values() for each in some)
  wanted = max(1, min(round(share * len(classes)), len(classes) - 1))
  held = set()
  for image in sorted(
    dataset.images,
    key=lambda x: hashlib.sha256(f'{seed}/{x.file_name}'.encode()).digest(),
  ):
    own = classes[image.image_id]
    if len(held) < wanted and all(left[each] > 1 for each in own):
      held.add(image.image_id)
      left.subtract(own)
  if not any(classes[image_id] for image_id in held):
    raise UserError(
      f'{dataset.annotations_file}: of {len(classes)} images none with an '
      'object can be held out for validation, since every class needs one to '
      'train on. Name other images by --val_annotations, or try another '
      '--val_share or --val_seed.',
      argument='val_share',
      path=dataset.annotations_file,
      given=share,
    )
  return [x.image_id for x in dataset.images if x.image_id in held]


def _classes(image, dataset) -> set[int]:
  """Category ids of the objects of an image that are no crowds."""
  entries = dataset.annotations.get(image.image_id, ())
  return {x['category_id'] for x in entries if not x.get('iscrowd')}
