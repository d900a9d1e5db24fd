"""Pictures of shapes as examples of a data set and as COCO annotations."""

import hashlib

import drawing
import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn_jax.datasets import masks


def make_example(seed: int, index: int) -> dict:
  """Picture `index` of a series, with the features of our records."""
  picture = drawing.draw(seed, index)
  encoded = drawing.encode_image(picture.image)
  objects = [
    {
      'bbox': dict(zip(('ymin', 'xmin', 'ymax', 'xmax'), box / drawing.SIZE)),
      'class': {
        'label': class_id,
        'text': drawing.CLASS_NAMES[class_id - 1],
      },
      'is_crowd': 0,
      'area': np.count_nonzero(mask),
      'mask': masks.encode_mask(mask),
    }
    for box, class_id, mask in zip(
      picture.boxes, picture.classes, picture.masks
    )
  ]
  return {
    'image': {
      'encoded': encoded,
      'format': 'jpeg',
      'filename': f'shapes-{seed}-{index:06d}.jpg',
      'source_id': str(index + 1),
      'key': {'sha256': hashlib.sha256(encoded).hexdigest()},
      'height': drawing.SIZE,
      'width': drawing.SIZE,
      'object': objects,
    }
  }


def coco_annotations(seed: int, count: int) -> dict:
  """The first `count` pictures of a series as COCO instances, masks as RLE."""
  images, objects = [], []
  for index in range(count):
    images.append(
      {
        'id': index + 1,
        'file_name': f'shapes-{seed}-{index:06d}.jpg',
        'height': drawing.SIZE,
        'width': drawing.SIZE,
      }
    )
    picture = drawing.draw(seed, index)
    for mask, class_id in zip(picture.masks, picture.classes.tolist()):
      y1, x1, y2, x2 = (int(side) for side in drawing.tight_box(mask))
      rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
      objects.append(
        {
          'id': len(objects) + 1,
          'image_id': index + 1,
          'category_id': class_id,
          'bbox': [x1, y1, x2 - x1, y2 - y1],
          'area': int(np.count_nonzero(mask)),
          'iscrowd': 0,
          'segmentation': {
            'size': rle['size'],
            'counts': rle['counts'].decode(),
          },
        }
      )
  categories = [
    {'id': class_id, 'name': name}
    for class_id, name in enumerate(drawing.CLASS_NAMES, start=1)
  ]
  return {'images': images, 'annotations': objects, 'categories': categories}
