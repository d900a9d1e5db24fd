"""Defects of data sets, each with the finding that names it.

A row of `DEFECTS` is place and kind of the finding, the change of a valid set,
and maybe a value in the message and kinds that may follow.
"""

import shutil

from PIL import Image


def _object(**changes):
  """Changes fields of the annotation that is broken."""
  return lambda data: data.victim.update(changes)


def _box(make):
  return lambda data: data.victim.update(bbox=make(*data.victim['bbox']))


def _polygon(make):
  def change(data):
    x, y, width, height = data.victim['bbox']
    (polygon,) = data.victim['segmentation']
    parts = make(polygon, x, y, x + width, y + height)
    data.victim['segmentation'] = parts

  return change


def _more_polygon(*corners):
  return _polygon(lambda polygon, *_: [polygon, list(corners)])


def _run_lengths(make):
  """Changes run lengths, which get the height and width of the image."""

  def change(data):
    size = [data.image['height'], data.image['width']]
    data.victim['segmentation'] = {'size': size, **make(*size)}

  return change


def _category(changes):
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


def _as_text(key):
  return lambda data: data.victim.update({key: str(data.victim[key])})


def _rename_image(data):
  """Image and objects keep fitting together under an id that is no number."""
  image, old = data.image, data.image['id']
  for each in data.train['annotations']:
    if each['image_id'] == old:
      each['image_id'] = f'n{old}'
  image['id'] = f'n{old}'


def _rename_file(name):
  return lambda data: data.image.update(file_name=name)


def _file(write):
  """Replaces the image; the link to the sound file is cut first."""

  def change(data):
    path = data.image_path
    content = path.read_bytes()
    path.unlink()
    write(path, content)

  return change


def _turn(orientation):
  def write(path, content):
    path.write_bytes(content)
    with Image.open(path) as image:
      exif = Image.Exif()
      exif[0x0112] = orientation
      image.save(path, exif=exif)

  return write


def _save_32_bits(path, content):
  path.write_bytes(content)
  with Image.open(path) as image:
    image = image.convert('L').convert('I')
  image.save(path, 'TIFF')


def _save_as_webp(path, content):
  path.write_bytes(content)
  with Image.open(path) as image:
    image.load()
  image.save(path, 'WEBP')


def _copy_file(name):
  return lambda data: shutil.copy(
    data.image_path, data.image_path.with_name(name)
  )


def _copy_image(split, file_name=None):
  """One more entry of the victim's image, maybe with a file of its own."""

  def change(data):
    entry = data.image | {'id': 987654}
    if file_name:
      entry['file_name'] = file_name
      shutil.copy(data.image_path, data.folder / split / file_name)
    getattr(data, split)['images'].append(entry)

  return change


def _append(key, make):
  """One more entry in a list of train."""
  return lambda data: data.train[key].append(make(data))


def _make_crowds(split, spared):
  """Crowds of all objects of a split but the first few."""

  def change(data):
    for number, each in enumerate(getattr(data, split)['annotations']):
      each['iscrowd'] = int(number >= spared)

  return change


def _shrink_areas(data):
  for each in data.val['annotations']:
    each['area'] = min(each['area'], 1024)


def _repeat_object(data):
  entry = data.val['annotations'][0]
  data.val['annotations'] += [entry | {'id': -k} for k in range(1, 102)]


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


# All others are warnings.
SEVERITIES = {
  'error': (
    'all_crowd category_id class_name_differs class_not_in_train '
    'duplicate_annotation_id duplicate_category_id duplicate_image_id entry '
    'image_entry image_id missing_image no_objects outside_folder '
    'unknown_category unusable_area unusable_box unusable_image unusable_mask '
    'huge_category_ids'
  ),
  'note': (
    'box_clipped empty_area_range ids_from_0 ignored_region image_not_listed '
    'missing_box missing_crowd_flag number_format polygon_nesting '
    'rotation_ignored stored_as_png unnamed_category value_range'
  ),
}
_NAN = float('nan')
_LIES_OUTSIDE = _box(lambda x, y, w, h: [5000, y, w, h])
_ENDS_OUTSIDE = _box(lambda x, y, w, h: [x, y, 5000 - x, h])
_BEGINS_OUTSIDE = _box(lambda x, y, w, h: [-0.5, y, w + x, h])
_CORNERS = _box(lambda x, y, w, h: [x, y, x + w, y + h])
_NAN_CORNER = _polygon(lambda polygon, *_: [[*polygon[:-1], _NAN]])
_LINE = _polygon(lambda p, x, y, *_: [p, [x, y, x + 2, y + 2, x + 4, y + 4]])
_BOW_TIE = _polygon(lambda _, x, y, x2, y2: [[x, y, x2, y2, x2, y, x, y2]])
_OUTSIDE = _more_polygon(-9, -9, -9, 5, 5, -9)
_SHARES = _more_polygon(0, 0, 1, 0, 1, 0.9)
_OTHER_SIZE = _run_lengths(lambda h, w: {'size': [3, 4], 'counts': [0, h * w]})
_TOO_SHORT = _run_lengths(lambda h, w: {'counts': [1, 2]})
_SAME_CLASS = _append('categories', lambda data: data.train['categories'][0])
_SAME_NAME = _append(
  'categories', lambda data: data.train['categories'][0] | {'id': 500}
)
_SAME_OBJECT = _append('annotations', lambda data: dict(data.victim))
_AGAIN = _append('annotations', lambda data: data.victim | {'id': 987654})
_SAME_IMAGE = _append(
  'images', lambda data: data.image | {'file_name': 'b.jpg'}
)
_HALF = _file(lambda path, x: path.write_bytes(x[: len(x) // 2]))
_TEXT = _file(lambda path, _: path.write_text('no image'))
_OTHER = _file(lambda path, _: Image.new('RGB', (9, 5)).save(path))

_DEFECTS = {
  'object': [
    ('unusable_box', _box(lambda x, y, w, h: [x, y, w])),
    ('unusable_box', _box(lambda x, y, w, h: [x, y, w, _NAN]), 'nan'),
    ('zero_area_box', _box(lambda x, y, w, h: [x, y, 0, h])),
    ('box_outside_image', _LIES_OUTSIDE, '', 'box_mask_mismatch'),
    ('box_clipped', _ENDS_OUTSIDE, '', 'box_mask_mismatch'),
    ('box_clipped', _BEGINS_OUTSIDE, '', 'box_mask_mismatch'),
    ('box_mask_mismatch', _CORNERS, 'corners x1, y1', 'box_clipped'),
    ('missing_box', _object(bbox=None)),
    ('unusable_mask', _polygon(lambda polygon, *_: [polygon[:-1]])),
    ('unusable_mask', _NAN_CORNER, 'coordinate nan'),
    ('unusable_mask', _object(segmentation=None)),
    ('unusable_mask', _object(segmentation=[])),
    ('unusable_mask', _OTHER_SIZE, 'are for size [3, 4]'),
    ('unusable_mask', _TOO_SHORT, 'add up to 3 pixels'),
    ('unusable_mask', _run_lengths(lambda h, w: {'counts': '\x01'})),
    ('empty_mask', _run_lengths(lambda h, w: {'counts': [h * w]})),
    ('short_polygon', _more_polygon(1, 1, 5, 5), '1 (from 0) has 2 corners'),
    ('short_polygon', _more_polygon(), 'has 0 corners'),
    ('empty_polygon', _LINE, 'polygon 1 (from 0) has no area'),
    ('crossing_polygon', _BOW_TIE, '', 'area_mismatch'),
    (
      'polygon_outside_image',
      _OUTSIDE,
      '9.0 pixels beyond',
      'box_mask_mismatch',
    ),
    ('polygon_normalized', _SHARES, '', 'box_mask_mismatch'),
    ('missing_area', lambda data: data.victim.pop('area')),
    ('unusable_area', _object(area='large'), "got 'large'"),
    ('area_mismatch', _object(area=3), 'area is 3, the mask has'),
    ('missing_crowd_flag', lambda data: data.victim.pop('iscrowd')),
    (
      'crowd_flag',
      _object(iscrowd='yes'),
      'taken to be a crowd',
      'class_of_crowds',
    ),
  ],
  'object of json': [
    ('unknown_category', _object(category_id=999), '999 is not among'),
    ('number_format', _as_text('category_id')),
    ('number_format', _as_text('area')),
    ('polygon_nesting', _polygon(lambda polygon, *_: polygon)),
    ('ignored_region', _object(ignore=1), '', 'class_of_crowds'),
    ('duplicate_annotation_id', _SAME_OBJECT),
    ('unknown_image', _object(image_id=999)),
    ('number_format', _as_text('image_id')),
  ],
  'train': [
    ('ids_from_0', _category({'id': 0}), 'has a category 0'),
    ('category_id', _category({'id': -1}), 'category id -1'),
    ('category_id', _category({'id': 'one'}), "category id 'one'"),
    ('huge_category_ids', _category({'id': 123456}), '123456'),
    ('unnamed_category', _category({'name': None})),
    ('duplicate_category_id', _SAME_CLASS),
    ('duplicate_class_name', _SAME_NAME),
    ('entry', _append('annotations', lambda data: [1, 2])),
    ('no_objects', lambda data: data.train['annotations'].clear()),
    ('crowd_share', _make_crowds('train', 1), '', 'class_of_crowds'),
    ('rotation_unclear', _file(_turn(3)), '--exif', 'rotation_ignored'),
    ('value_range', _file(_save_32_bits), 'int32', 'stored_as_png'),
  ],
  'image': [
    ('unusable_image', _HALF),
    ('unusable_image', _TEXT),
    ('unusable_image', _file(lambda path, _: path.touch())),
    ('unusable_image', _OTHER, 'is 5 x 9 (height x width)'),
    ('rotation_ignored', _file(_turn(6))),
    ('stored_as_png', _file(_save_as_webp)),
  ],
  'image of json': [
    ('duplicate_image_id', _SAME_IMAGE),
    ('image_entry', lambda data: data.image.update(height=None)),
    ('missing_image', lambda data: data.image_path.unlink()),
    *(
      ('outside_folder', _rename_file(name), name, 'image_not_listed')
      for name in ('../a.jpg', '/a.jpg')
    ),
  ],
  'renamed': [('image_id', _rename_image)],
  'copy': [('duplicate_file', _copy_image('train'))],
  'copied file': [('same_picture', _copy_image('train', 'again.jpg'))],
  'extra file': [('image_not_listed', _copy_file('extra.JPG'))],
  'val': [
    ('class_name_differs', _rename_in_val, "('unheard of') is '"),
    ('class_not_in_train', _move_in_val),
    ('class_only_in_val', _remove_class('train'), 'its AP will be 0'),
    ('class_not_in_val', _remove_class('val')),
    ('all_crowd', _make_crowds('val', 0), 'every AP is -1', 'class_of_crowds'),
    ('no_objects', lambda x: x.val['annotations'].clear(), 'every AP is -1'),
    ('empty_area_range', _shrink_areas, 'APl and ARl are -1', 'area_mismatch'),
  ],
  'leak': [('image_in_both', _copy_image('val', 'same.jpg'))],
  'first of val': [
    ('more_objects_than_counted', _repeat_object, '', 'duplicate_object')
  ],
  'again': [('duplicate_object', _AGAIN)],
}
DEFECTS = [(place, *row) for place, rows in _DEFECTS.items() for row in rows]
