"""COCO ground truth made of records, for evaluation without annotations."""

from typing import Any

import numpy as np

from maskrcnn_jax.datasets import masks, records
from maskrcnn_jax.datasets.images import decode
from maskrcnn_jax.errors import UserError


def coco_from_records(
  index: records.RecordIndex, num_images: int | None = None
) -> dict[str, Any]:
  """What a COCO instances JSON of the records holds.

  Boxes and areas are float32 in records, so AP by object size may differ from
  that of the original JSON in the last digit; what `prepare` skipped is missing
  here too.

  Args:
    index: of the records.
    num_images: number of images, from the first; None: all.

  Raises:
    UserError: a record or a mask in it cannot be read.
  """
  images, annotations, names, offset = [], [], {}, 0
  for row in range(len(index))[:num_images]:
    image_id = int(index.image_ids[row])
    size = int(index.heights[row]), int(index.widths[row])
    images.append({'id': image_id, 'height': size[0], 'width': size[1]})
    for each in records.read_objects(index, row):
      category_id = each['category_id']
      names.setdefault(category_id, each['name'] or str(category_id))
      offset = each['class_id'] - category_id
      mask = _decode_mask(each['mask'], size, image_id)
      annotations.append(
        {
          'id': len(annotations) + 1,
          'image_id': image_id,
          'category_id': category_id,
          'bbox': _xywh(each['box'], size),
          'area': each['area'],
          'iscrowd': int(each['is_crowd']),
          'segmentation': masks.encode_run_lengths(mask),
        }
      )
  if offset:
    # Category 0 marks ids from 0, whether or not it has an object.
    names.setdefault(0, '0')
  categories = [{'id': i, 'name': names[i]} for i in sorted(names)]
  return {
    'images': images,
    'annotations': annotations,
    'categories': categories,
  }


def _xywh(box, size):
  """COCO's box in pixels, from fractions `(y1, x1, y2, x2)`."""
  y1, x1, y2, x2 = (part * side for part, side in zip(box, size * 2))
  return [x1, y1, x2 - x1, y2 - y1]


def _decode_mask(png, size, image_id):
  try:
    mask = np.asarray(decode(png).convert('L')) > 0
  except UserError as error:
    raise UserError(
      f'A mask of image {image_id} cannot be read: {error}.', item=image_id
    ) from error
  if mask.shape != size:
    raise UserError(
      f'A mask of image {image_id} is {mask.shape}, its image {size}.',
      item=image_id,
      given=mask.shape,
      wanted=size,
    )
  return mask
