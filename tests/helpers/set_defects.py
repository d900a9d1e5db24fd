"""Defects of ids, image files and whole splits.

`DEFECTS` holds the change to a valid set and the expected finding: kind,
severity, place, a value in the message if any, and kinds that may follow.
"""

import shutil

from object_defects import change_object
from PIL import Image


def _break_category(changes):
  """Changes the victim's category, and refers to it as it is then."""

  def change(data):
    old = data.victim['category_id']
    for content in (data.train, data.val):
      for category in content['categories']:
        if category['id'] == old:
          category |= changes
      for each in content['annotations']:
        if each['category_id'] == old:
          each['category_id'] = changes.get('id', old)

  return change


def _change_image(**changes):
  return lambda data: data.image.update(changes)


def _rename_image(data):
  """Image and objects keep fitting together under an id that is a text."""
  old = data.image['id']
  image = data.image
  for each in data.train['annotations']:
    if each['image_id'] == old:
      each['image_id'] = str(old)
  image['id'] = str(old)


def _replace_file(write):
  """Replaces the image; the link to the sound file is cut first."""

  def change(data):
    path = data.image_path
    content = path.read_bytes()
    path.unlink()
    write(path, content)

  return change


def _turn(path, content):
  path.write_bytes(content)
  with Image.open(path) as image:
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


def _save_as_webp(path, content):
  path.write_bytes(content)
  with Image.open(path) as image:
    image.load()
  image.save(path, 'WEBP')


def _copy_image(file_name):
  """One more entry of the victim's image; None: of the same file."""

  def change(data):
    entry = data.image | {'id': 987654}
    if file_name:
      entry['file_name'] = file_name
      shutil.copy(data.image_path, data.image_path.with_name(file_name))
    data.train['images'].append(entry)

  return change


def _repeat(content_of, key):
  """One more entry with the same id."""

  def change(data):
    content = getattr(data, content_of)
    entry = data.victim if key == 'annotations' else content[key][0]
    content[key].append(dict(entry))

  return change


def _make_crowds(split, spared):
  """Crowds of all objects of a split but the first few."""

  def change(data):
    for number, each in enumerate(getattr(data, split)['annotations']):
      each['iscrowd'] = int(number >= spared)

  return change


def _leak(data):
  entry = data.image | {'id': 987654, 'file_name': 'same.jpg'}
  shutil.copy(data.image_path, data.folder / 'val' / 'same.jpg')
  data.val['images'].append(entry)


def _shrink_areas(data):
  for each in data.val['annotations']:
    each['area'] = min(each['area'], 1024)


def _repeat_object(data):
  entry = data.val['annotations'][0]
  data.val['annotations'] += [entry | {'id': -k} for k in range(1, 102)]


def _text_category(data):
  data.victim['category_id'] = str(data.victim['category_id'])


def _text_image(data):
  data.victim['image_id'] = str(data.victim['image_id'])


def _rename_in_val(data):
  class_id = data.val['annotations'][0]['category_id']
  for category in data.val['categories']:
    if category['id'] == class_id:
      category['name'] = 'unheard of'


def _move_in_val(data):
  class_id = data.val['annotations'][0]['category_id']
  for entry in [*data.val['categories'], *data.val['annotations']]:
    key = 'category_id' if 'category_id' in entry else 'id'
    if entry[key] == class_id:
      entry[key] = 777


def _remove_class(split):
  """A class that both splits have loses its objects in one of them."""

  def change(data):
    class_id, content = data.shared_class, getattr(data, split)
    content['annotations'] = [
      x for x in content['annotations'] if x['category_id'] != class_id
    ]

  return change


DEFECTS = {
  'category id 0': (
    _break_category({'id': 0}),
    ('ids_from_0', 'note', 'file', 'has a category 0'),
  ),
  'negative category id': (
    _break_category({'id': -1}),
    ('category_id', 'error', 'file', 'category id -1'),
  ),
  'category id that is a text': (
    _break_category({'id': 'one'}),
    ('category_id', 'error', 'file', "category id 'one'"),
  ),
  'two categories of one id': (
    _repeat('train', 'categories'),
    ('duplicate_category_id', 'error', 'file'),
  ),
  'two classes of one name': (
    lambda data: data.train['categories'].append(
      data.train['categories'][0] | {'id': 500}
    ),
    ('duplicate_class_name', 'warning', 'file'),
  ),
  'unknown category': (
    change_object(category_id=999),
    ('unknown_category', 'error', 'object of json', '999 is not among'),
  ),
  'reference to a category as a text': (
    _text_category,
    ('unknown_category', 'error', 'object of json'),
  ),
  'image id that is a text': (
    _rename_image,
    ('image_id', 'error', 'renamed'),
  ),
  'two images of one id': (
    lambda data: data.train['images'].append(
      data.image | {'file_name': 'other.jpg'}
    ),
    ('duplicate_image_id', 'error', 'image of json'),
  ),
  'one file as two images': (
    _copy_image(None),
    ('duplicate_file', 'warning', 'copy'),
  ),
  'a picture that is there twice': (
    _copy_image('again.jpg'),
    ('same_picture', 'warning', 'copied file'),
  ),
  'image without a size': (
    _change_image(height=None),
    ('image_entry', 'error', 'image of json'),
  ),
  'missing file': (
    lambda data: data.image_path.unlink(),
    ('missing_image', 'error', 'image of json'),
  ),
  'truncated file': (
    _replace_file(lambda path, x: path.write_bytes(x[: len(x) // 2])),
    ('unusable_image', 'error', 'image'),
  ),
  'text file': (
    _replace_file(lambda path, _: path.write_text('no image')),
    ('unusable_image', 'error', 'image'),
  ),
  'empty file': (
    _replace_file(lambda path, _: path.touch()),
    ('unusable_image', 'error', 'image'),
  ),
  'file of another size': (
    _replace_file(lambda path, _: Image.new('RGB', (9, 5)).save(path)),
    ('unusable_image', 'error', 'image', 'is 5 x 9 (height x width)'),
  ),
  'turned by EXIF': (
    _replace_file(_turn),
    ('rotation_ignored', 'note', 'image'),
  ),
  'file that is in no json': (
    lambda data: shutil.copy(
      data.image_path, data.image_path.with_name('extra.JPG')
    ),
    ('image_not_listed', 'note', 'extra file'),
  ),
  'neither JPEG nor PNG': (
    _replace_file(_save_as_webp),
    ('stored_as_png', 'note', 'image'),
  ),
  'two annotations of one id': (
    _repeat('train', 'annotations'),
    ('duplicate_annotation_id', 'error', 'object of json'),
  ),
  'object of an unknown image': (
    change_object(image_id=999),
    ('unknown_image', 'warning', 'object of json'),
  ),
  'reference to an image as a text': (
    _text_image,
    ('unknown_image', 'warning', 'object of json'),
  ),
  'annotation that is none': (
    lambda data: data.train['annotations'].append([1, 2]),
    ('entry', 'error', 'file'),
  ),
  'image without objects': (
    lambda data: data.train['annotations'].clear(),
    ('no_objects', 'error', 'file'),
  ),
  'mostly crowds': (
    _make_crowds('train', 1),
    ('crowd_share', 'warning', 'file'),
    {'class_of_crowds'},
  ),
  'another name in val': (
    _rename_in_val,
    ('class_name_differs', 'error', 'val', "('unheard of') is '"),
  ),
  'another id in val': (
    _move_in_val,
    ('class_not_in_train', 'error', 'val'),
  ),
  'class without training': (
    _remove_class('train'),
    ('class_only_in_val', 'warning', 'val', 'its AP will be 0'),
  ),
  'class without validation': (
    _remove_class('val'),
    ('class_not_in_val', 'warning', 'val'),
  ),
  'the same picture in train and val': (
    _leak,
    ('image_in_both', 'warning', 'leak'),
  ),
  'nothing but crowds in val': (
    _make_crowds('val', 0),
    ('all_crowd', 'error', 'val', 'every AP is -1'),
    {'class_of_crowds'},
  ),
  'nothing in val': (
    lambda data: data.val['annotations'].clear(),
    ('no_objects', 'error', 'val', 'every AP is -1'),
  ),
  'no large object in val': (
    _shrink_areas,
    ('empty_area_range', 'note', 'val', 'APl and ARl are -1'),
    {'area_mismatch'},
  ),
  'more objects than COCO counts': (
    _repeat_object,
    ('more_objects_than_counted', 'warning', 'first of val'),
  ),
}
