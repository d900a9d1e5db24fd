"""Pictures of shapes as examples and as COCO annotations."""

import drawing
import numpy as np

from maskrcnn_jax.datasets import masks
from maskrcnn_jax.datasets.examples import ImageExample


def make_example(seed: int, index: int) -> ImageExample:
  """Picture `index` of a series and the shapes in it."""
  picture = drawing.draw(seed, index)
  return ImageExample(
    encoded=drawing.encode_image(picture.image),
    filename=f'shapes-{seed}-{index:06d}.jpg',
    image_id=index + 1,
    height=drawing.SIZE,
    width=drawing.SIZE,
    boxes=picture.boxes.astype(np.float64),
    classes=picture.classes,
    class_names=[drawing.CLASS_NAMES[k - 1] for k in picture.classes],
    is_crowd=np.zeros(len(picture.classes), bool),
    areas=picture.masks.sum(axis=(1, 2), dtype=np.float64),
    masks=[masks.encode_png(mask) for mask in picture.masks],
  )


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
      objects.append(
        {
          'id': len(objects) + 1,
          'image_id': index + 1,
          'category_id': class_id,
          'bbox': [x1, y1, x2 - x1, y2 - y1],
          'area': int(np.count_nonzero(mask)),
          'iscrowd': 0,
          'segmentation': masks.encode_run_lengths(mask),
        }
      )
  categories = [
    {'id': class_id, 'name': name}
    for class_id, name in enumerate(drawing.CLASS_NAMES, start=1)
  ]
  return {'images': images, 'annotations': objects, 'categories': categories}
