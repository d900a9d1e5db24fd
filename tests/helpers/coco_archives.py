"""Zips laid out as those of COCO 2017, with a few small pictures in them."""

import hashlib
import io
import json
import zipfile

import numpy as np
from PIL import Image

NUM_IMAGES = {'train': 5, 'val': 3, 'test': 2}
_FIRST_ID = {'train': 100, 'val': 200, 'test': 300}
JSON_FILES = (
  'captions_train2017.json',
  'captions_val2017.json',
  'image_info_test-dev2017.json',
  'image_info_test2017.json',
  'instances_train2017.json',
  'instances_val2017.json',
  'person_keypoints_train2017.json',
  'person_keypoints_val2017.json',
)


def make() -> dict[str, bytes]:
  """The five zips by their path on the server."""
  archives = {
    f'zips/{split}2017.zip': _pack(
      (f'{split}2017/{file_name(split, k)}', _picture(split, k))
      for k in range(count)
    )
    for split, count in NUM_IMAGES.items()
  }
  jsons = dict.fromkeys(JSON_FILES)
  for split in ('train', 'val'):
    jsons[f'instances_{split}2017.json'] = _instances(split)
    jsons[f'captions_{split}2017.json'] = _captions(split)
    jsons[f'person_keypoints_{split}2017.json'] = _instances(split)
  for name in ('test', 'test-dev'):
    jsons[f'image_info_{name}2017.json'] = {'images': _images('test')}
  for archive, prefix in (
    ('annotations_trainval2017', ('ins', 'cap', 'per')),
    ('image_info_test2017', 'image_info'),
  ):
    archives[f'annotations/{archive}.zip'] = _pack(
      (f'annotations/{name}', json.dumps(content).encode())
      for name, content in jsons.items()
      if name.startswith(prefix)
    )
  return archives


def table(archives: dict[str, bytes], sizes: bool = True) -> str:
  """The table of sizes and checksums; without either if `sizes` is False."""
  return '\n'.join(
    f'{path} {len(content)} sha256:{hashlib.sha256(content).hexdigest()}'
    if sizes
    else f'{path} - -'
    for path, content in archives.items()
  )


def corrupt(archive: bytes) -> bytes:
  """A zip with one byte of its first member inverted."""
  with zipfile.ZipFile(io.BytesIO(archive)) as opened:
    member = opened.infolist()[0]
  place = 30 + len(member.filename) + member.compress_size // 2
  changed = bytearray(archive)
  changed[place] ^= 0xFF
  return bytes(changed)


def _pack(members):
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, content in members:
      archive.writestr(name, content)
  return stream.getvalue()


def file_name(split, k):
  return f'{_FIRST_ID[split] + k:012d}.jpg'


def _size(k):
  return (60, 80) if k % 2 else (72, 56)


def _picture(split, k):
  """JPEG of rings; the second of a split is gray."""
  height, width = _size(k)
  y, x = np.mgrid[:height, :width]
  rings = np.hypot(y - 30, x - 10 * k)[..., None] * [1.0, 0.7, 0.4]
  pixels = (127 + 127 * np.sin(rings + _FIRST_ID[split])).astype(np.uint8)
  image = Image.fromarray(pixels)
  stream = io.BytesIO()
  (image.convert('L') if k == 1 else image).save(stream, 'JPEG', quality=90)
  return stream.getvalue()


def _images(split):
  return [
    {
      'id': _FIRST_ID[split] + k,
      'file_name': file_name(split, k),
      'height': _size(k)[0],
      'width': _size(k)[1],
    }
    for k in range(NUM_IMAGES[split])
  ]


def _instances(split):
  """k objects on picture k, the last of them a crowd from picture 2 on."""
  objects = []
  for image in _images(split):
    for j in range(image['id'] % 100):
      x, y, side = 5 + 9 * j, 8 + 6 * j, 14 + j
      corners = [x, y, x + side, y, x + side, y + side, x + side / 2, y + 9]
      entry = {'id': len(objects) + 1, 'image_id': image['id']}
      entry |= {'category_id': 1 + 89 * (j % 2), 'area': side * side * 0.7}
      entry |= {'bbox': [x, y, side, side], 'iscrowd': 0}
      entry['segmentation'] = [corners]
      if j == 1:
        height, width = image['height'], image['width']
        runs = [10 * height, 30, height * width - 10 * height - 30]
        entry['segmentation'] = {'size': [height, width], 'counts': runs}
        entry['iscrowd'] = 1
      objects.append(entry)
  categories = [{'id': 1, 'name': 'person'}, {'id': 90, 'name': 'toothbrush'}]
  images = _images(split)
  return {'images': images, 'annotations': objects, 'categories': categories}


def _captions(split):
  return {
    'annotations': [
      {'image_id': image['id'], 'caption': f'{word} on picture {k}'}
      for k, image in enumerate(_images(split))
      for word in ('rings', 'squares')[: k + 1]
    ]
  }
