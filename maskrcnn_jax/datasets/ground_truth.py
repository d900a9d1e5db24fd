"""A COCO json made of records, for evaluation where there is no other."""

import io
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_jax.datasets import records
from maskrcnn_jax.errors import UserError


def coco_from_records(
  index: records.RecordIndex, num_images: int | None = None
) -> dict[str, Any]:
  """Images, objects with run-length masks and classes of records.

  Boxes and areas are float32 in records, so the numbers by object size may
  differ from those of the original json in the last digit; what `prepare` left
  out of the records is missing here too.

  Args:
    index: of the records.
    num_images: take the first ones only; None: all.

  Returns:
    What a COCO instances json holds.

  Raises:
    ValueError: a record or a mask in it cannot be read; names the image.
  """
  images, annotations, names, offset = [], [], {}, 0
  for row in range(len(index))[:num_images]:
    image_id = int(index.image_ids[row])
    size = int(index.heights[row]), int(index.widths[row])
    images.append({'id': image_id, 'height': size[0], 'width': size[1]})
    for each in records.read_objects(index, row):
      category_id = each.category_id
      names.setdefault(category_id, each.class_name or str(category_id))
      offset = each.class_id - category_id
      annotations.append(
        {
          'id': len(annotations) + 1,
          'image_id': image_id,
          'category_id': category_id,
          'bbox': _xywh(each.box, size),
          'area': each.area,
          'iscrowd': each.is_crowd,
          'segmentation': _run_lengths(each.mask, size, image_id),
        }
      )
  if offset:
    # What tells that classes are one more, whether or not it has an object.
    names.setdefault(0, '0')
  categories = [{'id': i, 'name': names[i]} for i in sorted(names)]
  return {
    'images': images,
    'annotations': annotations,
    'categories': categories,
  }


def _xywh(box, size):
  """COCO's box in pixels, of shares `(y1, x1, y2, x2)`."""
  y1, x1, y2, x2 = (share * side for share, side in zip(box, size * 2))
  return [x1, y1, x2 - x1, y2 - y1]


def _run_lengths(png, size, image_id):
  try:
    with Image.open(io.BytesIO(png)) as picture:
      mask = np.asarray(picture.convert('L')) > 0
  except OSError as error:
    raise UserError(
      f'A mask of image {image_id} cannot be read: {error}.'
    ) from error
  if mask.shape != size:
    raise UserError(
      f'A mask of image {image_id} is {mask.shape}, its image {size}.'
    )
  encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
  return {'size': list(size), 'counts': encoded['counts'].decode('ascii')}
