"""Defects of single objects: boxes, masks and other fields.

`DEFECTS` holds the change to a valid set and the expected finding: kind,
severity, place, a value in the message if any, and kinds that may follow.
"""


def change_object(**changes):
  """Changes fields of the annotation that is broken."""
  return lambda data: data.victim.update(changes)


def _change_box(make):
  def change(data):
    data.victim['bbox'] = make(*data.victim['bbox'])

  return change


def _change_polygon(make):
  def change(data):
    x, y, width, height = data.victim['bbox']
    data.victim['segmentation'] = make(
      data.victim['segmentation'][0], x, y, x + width, y + height
    )

  return change


def _break_run_lengths(**changes):
  def change(data):
    size = [data.image['height'], data.image['width']]
    whole = {'size': size, 'counts': [0, size[0] * size[1]]}
    data.victim['segmentation'] = whole | changes

  return change


DEFECTS = {
  'box of three numbers': (
    _change_box(lambda x, y, width, height: [x, y, width]),
    ('unusable_box', 'error', 'object'),
  ),
  'box with NaN': (
    _change_box(lambda x, y, width, height: [x, y, width, float('nan')]),
    ('unusable_box', 'error', 'object', 'nan'),
  ),
  'box without width': (
    _change_box(lambda x, y, width, height: [x, y, 0, height]),
    ('zero_area_box', 'warning', 'object'),
  ),
  'box that ends outside': (
    _change_box(lambda x, y, width, height: [x, y, 5000 - x, height]),
    ('box_outside_image', 'warning', 'object'),
    {'box_mask_mismatch'},
  ),
  'box that begins outside': (
    _change_box(lambda x, y, width, height: [-0.5, y, width + x, height]),
    ('box_begins_outside', 'warning', 'object'),
    {'box_mask_mismatch'},
  ),
  'box of corners': (
    _change_box(lambda x, y, width, height: [x, y, x + width, y + height]),
    ('box_mask_mismatch', 'warning', 'object', 'corners x1, y1'),
    {'box_outside_image'},
  ),
  'polygon of odd length': (
    _change_polygon(lambda polygon, *_: [polygon[:-1]]),
    ('unusable_mask', 'error', 'object'),
  ),
  'polygon with NaN': (
    _change_polygon(lambda polygon, *_: [[*polygon[:-1], float('nan')]]),
    ('unusable_mask', 'error', 'object', 'coordinate nan'),
  ),
  'no segmentation': (
    change_object(segmentation=None),
    ('unusable_mask', 'error', 'object'),
  ),
  'empty segmentation': (
    change_object(segmentation=[]),
    ('unusable_mask', 'error', 'object'),
  ),
  'run lengths of another size': (
    _break_run_lengths(size=[3, 4]),
    ('unusable_mask', 'error', 'object', 'are for size [3, 4]'),
  ),
  'run lengths that are too short': (
    _break_run_lengths(counts=[1, 2]),
    ('unusable_mask', 'error', 'object', 'add up to 3 pixels'),
  ),
  'run lengths with a wrong character': (
    _break_run_lengths(counts='\x01'),
    ('unusable_mask', 'error', 'object'),
  ),
  'mask without a pixel': (
    lambda data: _break_run_lengths(
      counts=[data.image['height'] * data.image['width']]
    )(data),
    ('empty_mask', 'warning', 'object'),
  ),
  'polygon of two corners': (
    _change_polygon(lambda polygon, *_: [polygon, [1, 1, 5, 5]]),
    ('short_polygon', 'warning', 'object', 'polygon 1 (from 0) has 2 corners'),
  ),
  'empty polygon': (
    _change_polygon(lambda polygon, *_: [polygon, []]),
    ('short_polygon', 'warning', 'object', 'has 0 corners'),
  ),
  'polygon on a line': (
    _change_polygon(
      lambda polygon, x, y, *_: [polygon, [x, y, x + 2, y + 2, x + 4, y + 4]]
    ),
    ('empty_polygon', 'warning', 'object', 'polygon 1 (from 0) has no area'),
  ),
  'self-crossing polygon': (
    _change_polygon(
      lambda polygon, x1, y1, x2, y2: [[x1, y1, x2, y2, x2, y1, x1, y2]]
    ),
    ('crossing_polygon', 'warning', 'object'),
    {'area_mismatch'},
  ),
  'polygon outside': (
    _change_polygon(lambda polygon, *_: [polygon, [-9, -9, -9, 5, 5, -9]]),
    ('polygon_outside_image', 'warning', 'object', '9.0 pixels beyond'),
    {'box_mask_mismatch'},
  ),
  'polygon in shares': (
    _change_polygon(lambda polygon, *_: [polygon, [0, 0, 1, 0, 1, 0.9]]),
    ('polygon_normalized', 'warning', 'object'),
    {'box_mask_mismatch'},
  ),
  'no area': (
    lambda data: data.victim.pop('area'),
    ('missing_area', 'warning', 'object'),
  ),
  'area that is a text': (
    change_object(area='large'),
    ('unusable_area', 'error', 'object', "got 'large'"),
  ),
  'area of another mask': (
    change_object(area=3),
    ('area_mismatch', 'warning', 'object', 'area is 3, the mask has'),
  ),
  'no crowd flag': (
    lambda data: data.victim.pop('iscrowd'),
    ('missing_crowd_flag', 'note', 'object'),
  ),
  'crowd flag that is a text': (
    change_object(iscrowd='0'),
    (
      'crowd_flag',
      'warning',
      'object',
      "got '0', which is taken to be a crowd",
    ),
    {'class_of_crowds'},
  ),
}
