"""One small data set in every label format, and readers of it.

The image `a.png` of 6 x 4 pixels has a cat, the pixels of 5 in `NUMBERS`, and a
dog, those of 9. `MAKERS` writes it into a folder, as `images` and `labels`.
"""

import base64
import io
import json
import zlib

import numpy as np
from PIL import Image

from maskrcnn_jax.datasets import masks
from maskrcnn_jax.datasets.formats import convert
from maskrcnn_jax.datasets.formats.source import Source

NUMBERS = np.array(
  [
    [0, 5, 5, 5, 0, 0],
    [0, 5, 5, 5, 0, 9],
    [0, 0, 0, 0, 0, 9],
    [0, 0, 0, 0, 0, 0],
  ]
)
CAT = [[1, 0], [4, 0], [4, 2], [1, 2]]
DOG = [[5, 1], [6, 1], [6, 3], [5, 3]]


def make_image(path, size=(6, 4), **options):
  """Writes a black image of a size (width, height)."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', size).save(path, **options)


def save_mask(path, array, palette=None):
  """Writes an array as an image, with a palette if one is given."""
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(array)
  if palette:
    image = image.convert('L')
    image.putpalette(palette)
  image.save(path)


def save_json(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content))


def png_text(mask, compress=lambda data: data):
  """A mask as a PNG in base64."""
  stream = io.BytesIO()
  Image.fromarray(mask).save(stream, 'PNG')
  return base64.b64encode(compress(stream.getvalue())).decode()


def make_labelme(folder):
  shapes = [
    {'label': 'dog', 'points': [[5, 1], [5, 2]], 'shape_type': 'mask'},
    {'label': 'cat', 'points': CAT, 'shape_type': 'polygon', 'flags': {}},
  ]
  shapes[0] |= {'group_id': None, 'mask': png_text(np.ones((2, 1), bool))}
  content = {'version': '5.5.0', 'flags': {}, 'shapes': shapes}
  content |= {'imagePath': '..\\images\\a.png', 'imageData': None}
  content |= {'imageHeight': 4, 'imageWidth': 6}
  save_json(folder / 'labels' / 'a.json', content)


def make_cvat(folder):
  (folder / 'labels.xml').write_text(
    '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1'
    '</version><meta><task><labels><label><name>cat</name></label><label>'
    '<name>dog</name></label></labels></task></meta>'
    '<image id="0" name="day/a.png" width="6" height="4">'
    '<mask label="dog" source="manual" occluded="0" rle="0, 2" left="5" '
    'top="1" width="1" height="2" z_order="0"></mask>'
    '<polygon label="cat" occluded="0" points="1.0,0.0;4.0,0.0;4.0,2.0;1.0,2.0"'
    ' z_order="0"/></image></annotations>'
  )


def coco(**changes):
  """COCO's content, with changes to all annotations."""
  dog = masks.encode_run_lengths(NUMBERS == 9)
  annotations = [
    {
      'id': 1,
      'category_id': 1,
      'segmentation': [np.ravel(CAT).tolist()],
      'area': 6,
    }
    | {'bbox': [1, 0, 3, 2]},
    {'id': 2, 'category_id': 2, 'segmentation': dog, 'area': 2}
    | {'bbox': [5, 1, 1, 2]},
  ]
  image = {'id': 1, 'file_name': 'a.png', 'height': 4, 'width': 6}
  names = enumerate(('cat', 'dog'), 1)
  return {
    'images': [image],
    'annotations': [
      {'image_id': 1, 'iscrowd': 0, **each, **changes} for each in annotations
    ],
    'categories': [{'id': i, 'name': name} for i, name in names],
  }


def make_coco(folder):
  save_json(folder / 'labels.json', coco())


def make_cvat_coco(folder):
  content = coco(attributes={'occluded': False})
  # Column by column: of 4 x 6 pixels the dog's are 21 and 22.
  runs = {'size': [4, 6], 'counts': [21, 2, 1]}
  content['annotations'][1] |= {'segmentation': runs, 'iscrowd': 1}
  save_json(
    folder / 'labels' / 'annotations' / 'instances_default.json', content
  )


def make_roboflow(folder):
  content = coco()
  pets = {'id': 0, 'name': 'pets', 'supercategory': 'none'}
  names = [{**x, 'supercategory': 'pets'} for x in content['categories']]
  content['categories'] = [pets, *names]
  save_json(folder / 'images' / '_annotations.coco.json', content)


def make_label_studio(folder):
  results = [
    {
      'type': 'polygonlabels',
      'original_width': 6,
      'original_height': 4,
      'image_rotation': 0,
      'value': {
        'points': [[100 * x / 6, 100 * y / 4] for x, y in points],
        'polygonlabels': [name],
      },
    }
    for points, name in ((CAT, 'cat'), (DOG, 'dog'))
  ]
  task = {'id': 7, 'data': {'image': '/data/upload/1/0a1b2c3d-a.png'}}
  task['annotations'] = [{'result': results, 'was_cancelled': False}]
  save_json(folder / 'labels.json', [task])


def make_via(folder):
  regions = [
    {
      'shape_attributes': {
        'name': 'polygon',
        'all_points_x': [x for x, _ in points],
        'all_points_y': [y for _, y in points],
      },
      'region_attributes': {'animal': name},
    }
    for points, name in ((CAT, 'cat'), (DOG, 'dog'))
  ]
  image = {'filename': 'a.png', 'size': 99, 'regions': regions}
  save_json(folder / 'labels.json', {'a.png99': image})


def make_supervisely(folder):
  bitmap = {'data': png_text(np.ones((2, 1), bool), zlib.compress)}
  objects = [
    {'classTitle': 'dog', 'geometryType': 'bitmap'}
    | {'bitmap': {**bitmap, 'origin': [5, 1]}},
    {'classTitle': 'cat', 'geometryType': 'polygon'}
    | {'points': {'exterior': CAT, 'interior': []}},
  ]
  content = {'size': {'height': 4, 'width': 6}, 'objects': objects}
  save_json(folder / 'labels' / 'ds' / 'ann' / 'a.png.json', content)
  classes = [{'title': name, 'shape': 'any'} for name in ('cat', 'dog')]
  save_json(folder / 'labels' / 'meta.json', {'classes': classes})


def make_voc(folder):
  numbers = np.where(NUMBERS, NUMBERS // 5, 0).astype(np.uint8)
  numbers[NUMBERS == 9] = 2
  numbers[3] = 255  # Void.
  names = {0: 0, 1: 8, 2: 12, 255: 255}  # Of the 20 classes, cat and dog.
  classes = np.vectorize(names.get)(numbers).astype(np.uint8)
  palette = list(range(256)) * 3
  save_mask(folder / 'labels/SegmentationObject/a.png', numbers, palette)
  save_mask(folder / 'labels/SegmentationClass/a.png', classes, palette)


def make_cityscapes(folder):
  place = folder / 'images'
  (place / 'a.png').rename(place / 'x_000000_000019_leftImg8bit.png')
  numbers = np.select([NUMBERS == 5, NUMBERS == 9], [26001, 24000], 7)
  save_mask(
    folder / 'labels' / 'x_000000_000019_gtFine_instanceIds.png',
    numbers.astype(np.uint16),
  )


def make_instance_png(folder):
  numbers = np.select([NUMBERS == 5, NUMBERS == 9], [1001, 2001], 0)
  save_mask(folder / 'labels' / 'a.png', numbers.astype(np.uint16))


def make_object_png(folder):
  for name, number in (('cat', 5), ('dog', 9)):
    mask = 255 * (number == NUMBERS).astype(np.uint8)
    save_mask(folder / 'labels' / 'a' / name / '0.png', mask)


def make_yolo(folder):
  lines = [
    ' '.join(map(str, [number, *(np.array(points) / (6, 4)).reshape(-1)]))
    for number, points in enumerate((CAT, DOG))
  ]
  (folder / 'labels').mkdir()
  (folder / 'labels' / 'a.txt').write_text('\n'.join(lines))
  (folder / 'labels' / 'classes.txt').write_text('cat\ndog\n')


MAKERS = {
  name.removeprefix('make_'): make
  for name, make in list(globals().items())
  if name.startswith('make_') and name != 'make_image'
}


def find_labels(folder):
  """The labels of a data set: a folder, a file, or among the images."""
  places = (folder / f'labels{ending}' for ending in ('', '.json', '.xml'))
  return next(filter(lambda x: x.exists(), places), folder / 'images')


def make(name, folder):
  """Writes images and labels of a format; returns where the labels are."""
  make_image(folder / 'images' / 'a.png')
  MAKERS[name](folder)
  return find_labels(folder)


def read(data_format, folder, classes=None, labels='labels', images='images'):
  """COCO's lists of a data set in a folder, and the findings."""
  source = Source(folder / images, folder / labels, classes, 1)
  return convert.read(data_format, source)


def areas(content):
  """Category and area of every object."""
  return [(x['category_id'], x['area']) for x in content['annotations']]


def decode(entry, height=4, width=6):
  """The mask of an annotation."""
  return masks.decode_segmentation(entry['segmentation'], height, width)


def kinds(findings):
  """Kind, file name and severity of every finding."""
  return [(x.kind, x.file.rsplit('/', 1)[-1], x.severity) for x in findings]
