"""Labels of single tools, with values by hand.

Masks are of a picture 4 wide and 3 high: pixels (x, y) of (1, 0), (1, 1) and
(2, 1).
"""

import numpy as np
import pytest
from label_sets import (
  coco,
  decode,
  kinds,
  make_image,
  read,
  save_json,
  save_mask,
)

from maskrcnn_jax.errors import UserError

MASK = np.array([[0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]], bool)
RLE = {'size': [3, 4], 'counts': '322O2'}
SQUARE = [[0, 0], [2, 0], [2, 2], [0, 2]]
# 2 x 2 pixels of the mask, from (1, 0).
PATCH = (
  'iVBORw0KGgoAAAANSUhEUgAAAAIAAAACAQAAAABazTCJAAAADElEQVR4nGNoYDgAAAJEAUHooQgH'
  'AAAAAElFTkSuQmCC'
)
# The same as Supervisely stores it.
BITMAP = (
  'eJzrDPBz5+WS4mJgYOD19HAJAtJMIMzIDCQ9KuanAym2AJ8QVyD9////pTfn3wWyGEuC/IIZHJ7d'
  'SANyeDxdHEMq5iRnJFgANbowOr5YyMEOFGfwdPVzWeeU0AQAPdsYYQ=='
)
BRUSH = [0, 0, 0, 48, 57, 27, 252, 96, 17, 255, 219, 0, 159, 255, 9, 128, 0]


@pytest.fixture
def folder(tmp_path):
  make_image(tmp_path / 'images' / 'a.png', (4, 3))
  return tmp_path


def read_one(name, folder, content, labels='labels.json', classes=None):
  """Objects and findings but those on the numbers of classes."""
  save_json(folder / labels, content)
  root = labels.split('/')[0]
  content, findings = read(name, folder, classes, root)
  findings = [x for x in findings if x.kind != 'numbered_classes']
  names = {x['id']: x['name'] for x in content['categories']}
  objects = [(names[x['category_id']], x) for x in content['annotations']]
  return objects, findings


def labelme(*shapes, **changes):
  content = {'version': '5.5.0', 'shapes': shapes, 'imagePath': 'a.png'}
  return content | {'imageHeight': 3, 'imageWidth': 4} | changes


def shape(kind, points, label='cat', **more):
  return {'label': label, 'points': points, 'shape_type': kind, **more}


def test_labelme(folder):
  objects, findings = read_one(
    'labelme',
    folder,
    labelme(
      shape('mask', [[1, 0], [2, 1]], mask=PATCH),
      shape('polygon', SQUARE, group_id=4),
      shape('polygon', [[3, 0], [4, 0], [4, 2], [3, 2]], group_id=4),
      shape('polygon', SQUARE, 'dog', group_id=4),
      shape('mask', [[1.4, 0.3], [2.4, 1.3]], mask=PATCH, group_id=None),
      {'label': 'cat', 'points': SQUARE},  # As the first versions wrote it.
      shape('rectangle', [[0, 0], [2, 2]]),
      shape('oriented_rectangle', SQUARE),
      shape('line', [[0, 0], [2, 2]]),
      shape('polygon', [[0, 0], [2, 2]]),
      shape('polygon', SQUARE, ''),
    ),
    'labels/a.json',
  )
  assert [(name, x['area']) for name, x in objects] == [
    *(('cat', 3), ('cat', 6), ('dog', 4), ('cat', 3), ('cat', 4))
  ]
  assert objects[0][1]['segmentation'] == RLE
  assert objects[0][1]['bbox'] == [1, 0, 2, 2]
  assert objects[1][1]['bbox'] == [0, 0, 4, 2]
  assert objects[1][1]['segmentation'] == [
    [0, 0, 2, 0, 2, 2, 0, 2],
    [3, 0, 4, 0, 4, 2, 3, 2],
  ]
  assert objects[3][1]['segmentation'] == RLE
  assert kinds(findings) == [
    ('box_without_mask', 'a.json', 'warning'),
    ('box_without_mask', 'a.json', 'warning'),
    ('shape_without_area', 'a.json', 'warning'),
    ('unusable_polygon', 'a.json', 'warning'),
    ('class_name', 'a.json', 'warning'),
  ]
  assert [x.message.split(':')[0] for x in findings[:4]] == [
    f'object {number}' for number in (7, 8, 9, 10)
  ]


def test_a_circle_is_a_polygon_of_its_area(tmp_path):
  make_image(tmp_path / 'images' / 'a.png', (100, 80))
  content = labelme(
    shape('circle', [[50, 40], [50, 60]]), imageHeight=80, imageWidth=100
  )
  ((_, found),), _ = read_one('labelme', tmp_path, content, 'labels/a.json')
  assert found['area'] == pytest.approx(np.pi * 20**2, rel=0.01)
  np.testing.assert_allclose(found['bbox'], [30, 20, 40, 40], atol=1e-9)


def test_a_label_of_another_size_is_an_error(folder):
  content = labelme(shape('polygon', SQUARE), imageHeight=6, imageWidth=8)
  _, findings = read_one('labelme', folder, content, 'labels/a.json')
  assert kinds(findings) == [('unusable_image', 'a.json', 'error')]
  assert '6 x 8' in findings[0].message and '3 x 4' in findings[0].message


def test_images_without_labels_and_labels_without_images_are_named(folder):
  make_image(folder / 'images' / 'b.png', (4, 3))
  (folder / 'images' / 'c.heic').write_bytes(b'x')
  content = labelme(shape('polygon', SQUARE))
  gone = {**content, 'imagePath': 'gone.png'}
  save_json(folder / 'labels' / 'gone.json', gone)
  objects, findings = read_one('labelme', folder, content, 'labels/a.json')
  assert len(objects) == 1
  assert kinds(findings) == [
    ('label_without_image', 'gone.json', 'warning'),
    ('file_passed_over', 'c.heic', 'warning'),
    ('missing_label', 'b.png', 'warning'),
  ]


def test_classes_are_numbered_by_name_or_as_they_are_given(folder):
  shapes = [shape('polygon', SQUARE, label) for label in ('b', 'a', 'c')]
  save_json(folder / 'labels' / 'a.json', labelme(*shapes))
  content, findings = read('labelme', folder)
  assert [x['name'] for x in content['categories']] == ['a', 'b', 'c']
  assert [x['category_id'] for x in content['annotations']] == [2, 1, 3]
  assert kinds(findings) == [('numbered_classes', 'labels', 'note')]
  content, findings = read('labelme', folder, 'c,b')
  assert content['categories'] == [
    {'id': 1, 'name': 'c'},
    {'id': 2, 'name': 'b'},
  ]
  assert [x['category_id'] for x in content['annotations']] == [2, 1]
  assert kinds(findings) == [('unlisted_class', 'labels', 'warning')]
  assert "'a'" in findings[0].message


def read_cvat(folder, body, name='a.png'):
  (folder / 'labels.xml').write_text(
    '<annotations><meta><job><labels><label><name>dog</name></label>'
    '<label><name>cat</name></label></labels></job></meta>'
    f'<image id="0" name="{name}" width="4" height="3">{body}</image>'
    '</annotations>'
  )
  return read('cvat', folder, labels='labels.xml')


def test_cvat_xml(folder):
  square = 'points="0,0;2,0;2,2;0,2"'
  content, findings = read_cvat(
    folder,
    '<tag label="night"/>'
    '<mask label="cat" rle="0, 1, 1, 2" left="1" top="0" width="2" height="2"/>'
    f'<polygon label="dog" {square} group_id="2"/>'
    '<polygon label="dog" points="3,0;4,0;4,2;3,2" group_id="2"/>'
    f'<polygon label="cat" {square} group_id="0"><attribute name="x">y'
    '</attribute></polygon>'
    '<box label="cat" xtl="0" ytl="0" xbr="2" ybr="2"/>'
    f'<polyline label="cat" {square}/>'
    '<mask label="cat" rle="0, 9" left="1" top="0" width="2" height="2"/>'
    '<mask label="cat" rle="0, 18" left="1" top="0" width="9" height="2"/>'
    '<mask label="cat" rle="0, 0_4" left="1" top="0" width="2" height="2"/>'
    '<mask label="cat" rle="0, 4" left="1.5" top="0" width="2" height="2"/>'
    '<polygon label="cat" points="0_1,0;2,0;2,2;0,2"/>',
  )
  assert content['categories'] == [
    {'id': 1, 'name': 'dog'},
    {'id': 2, 'name': 'cat'},
  ]
  found = content['annotations']
  assert [(x['category_id'], x['area']) for x in found] == [
    *((2, 3), (1, 6), (2, 4))
  ]
  assert found[0]['segmentation'] == RLE
  warnings = [x.kind for x in findings if x.severity == 'warning']
  assert warnings == [
    *('box_without_mask', 'shape_without_area'),
    *4 * ('unusable_mask',),
    'unusable_polygon',
  ]


def test_cvat_ellipse_is_turned(tmp_path):
  make_image(tmp_path / 'images' / 'a.png', (100, 80))
  (tmp_path / 'labels.xml').write_text(
    '<annotations><image name="a.png" width="100" height="80"><ellipse '
    'label="cat" cx="50" cy="40" rx="30" ry="10" rotation="90"/></image>'
    '</annotations>'
  )
  content, _ = read('cvat', tmp_path, labels='labels.xml')
  (found,) = content['annotations']
  np.testing.assert_allclose(found['bbox'], [40, 10, 20, 60], atol=1e-9)
  assert found['area'] == pytest.approx(np.pi * 30 * 10, rel=0.02)


def test_cvat_video(tmp_path):
  for number in (0, 1, 2):
    make_image(tmp_path / 'images' / f'frame_{number:06d}.PNG', (4, 3))
  shape = '<polygon points="0,0;2,0;2,2;0,2" outside="{}" frame="{}"/>'
  (tmp_path / 'labels.xml').write_text(
    '<annotations><track id="0" label="cat">'
    + ''.join(shape.format(*x) for x in ((0, 0), (0, 2), (1, 1)))
    + '</track><track id="1" label="dog">'
    + shape.format(0, 2)
    + '</track></annotations>'
  )
  content, findings = read('cvat', tmp_path, labels='labels.xml')
  names = [x['file_name'] for x in content['images']]
  assert names == ['frame_000000.PNG', 'frame_000002.PNG']
  assert [
    (x['image_id'], x['category_id']) for x in content['annotations']
  ] == [*((1, 1), (3, 1), (3, 2))]
  missing = [x.file for x in findings if x.kind == 'missing_label']
  assert [x[-16:] for x in missing] == ['frame_000001.PNG']


def test_cvat_tracks_of_a_group_are_one_object(tmp_path):
  make_image(tmp_path / 'images' / 'frame_000000.PNG', (4, 3))
  part = (
    '<track label="cat" group_id="{}"><polygon frame="0" outside="0" '
    'points="{}"/></track>'
  )
  (tmp_path / 'labels.xml').write_text(
    '<annotations>'
    + part.format(1, '0,0;1,0;1,2;0,2')
    + part.format(1, '3,0;4,0;4,2;3,2')
    + part.format(2, '0,2;4,2;4,3;0,3')
    + '</annotations>'
  )
  content, _ = read('cvat', tmp_path, labels='labels.xml')
  assert [x['area'] for x in content['annotations']] == [4, 4]
  assert len(content['annotations'][0]['segmentation']) == 2


def test_cvat_coco_keeps_real_crowds(folder):
  content = coco(attributes={'occluded': False}, iscrowd=1)
  runs = {'size': [4, 6], 'counts': [21, 2, 1]}
  content['annotations'][1]['segmentation'] = runs
  save_json(folder / 'labels.json', content)
  found, findings = read('cvat_coco', folder, labels='labels.json')
  assert [x['iscrowd'] for x in found['annotations']] == [1, 0]
  assert kinds(findings) == [('brush_masks', 'labels.json', 'note')]
  found, _ = read('coco', folder, labels='labels.json')
  assert [x['iscrowd'] for x in found['annotations']] == [1, 1]


def label_studio(*results, image='/data/local-files/?d=set/a.png', **more):
  sizes = {'original_width': 4, 'original_height': 3, 'image_rotation': 0}
  results = [{**sizes, 'value': value} for value in results]
  annotation = {'result': results, 'was_cancelled': False, **more}
  return {'id': 1, 'data': {'image': image}, 'annotations': [annotation]}


def test_label_studio(folder):
  square = [[0, 0], [50, 0], [50, 100], [0, 100]]  # Percent.
  task = label_studio(
    {'format': 'rle', 'rle': BRUSH, 'brushlabels': ['cat']},
    {'points': square, 'polygonlabels': ['dog', 'cat']},
    {'x': 0, 'y': 0, 'width': 50, 'height': 50, 'rectanglelabels': ['cat']},
    {'x': 0, 'y': 0, 'width': 1, 'keypointlabels': ['cat']},
    {'choices': ['sharp']},
    {'format': 'rle', 'rle': BRUSH[:-4], 'brushlabels': ['cat']},
    {'format': 'rle', 'rle': [0, 0, 0, 49, *BRUSH[4:]], 'brushlabels': ['cat']},
    ground_truth=True,
  )
  cancelled = {'result': [], 'was_cancelled': True, 'ground_truth': True}
  relation = {'type': 'relation', 'from_id': 'a', 'to_id': 'b', 'labels': []}
  task['annotations'][0]['result'].append(relation)
  task['annotations'][:0] = [cancelled, {'result': []}]
  objects, findings = read_one('label_studio', folder, [task])
  assert [(name, x['area']) for name, x in objects] == [
    *(('cat', 3), ('dog', 6), ('cat', 6))
  ]
  assert objects[0][1]['segmentation'] == RLE
  assert objects[1][1]['segmentation'] == [[0, 0, 2, 0, 2, 3, 0, 3]]
  assert [x.kind for x in findings] == [
    'unused_annotation',
    *('box_without_mask', 'shape_without_area'),
    *('unusable_mask', 'unusable_mask'),
  ]


@pytest.mark.parametrize(
  'image',
  [
    'a.png',
    '/data/upload/3/12345678-a.png',
    'https://host/dir/a.png?x=1',
    's3://bucket/dir/a.png',
    '/data/local-files/?d=dir%5Ca.png',
  ],
)
def test_label_studio_names_of_images(folder, image):
  value = {'points': SQUARE, 'polygonlabels': ['cat']}
  task = label_studio(value, image=image)
  objects, _ = read_one('label_studio', folder, [task])
  assert len(objects) == 1


@pytest.mark.parametrize('json_min', [False, True])
@pytest.mark.parametrize(
  'first, second',
  [('polygonlabels', 'choices'), (None, 'labels'), ('labels', 'text')],
)
def test_label_studio_repeats_a_shape(folder, json_min, first, second):
  repeated = {'points': [[0, 0], [50, 0], [50, 100], [0, 100]]}
  values = [
    repeated | ({first: ['dog']} if first else {}),
    repeated | {second: ['dog']},
    {'points': [[0, 0], [100, 0], [100, 100]], 'polygonlabels': ['cat']},
  ]
  task = label_studio(*values)
  if json_min:
    task = {'image': 'a.png', 'id': 1, 'annotator': 1, 'shapes': values}
  objects, findings = read_one('label_studio', folder, [task])
  assert [name for name, _ in objects] == ['dog', 'cat']
  assert not findings


def test_label_studio_ellipse_and_json_min(tmp_path):
  make_image(tmp_path / 'images' / 'a.png', (100, 80))
  value = {'x': 50, 'y': 50, 'radiusX': 30, 'radiusY': 12.5, 'rotation': 90}
  value |= {'original_width': 100, 'original_height': 80}
  task = {'image': 'a.png', 'id': 1, 'annotator': 1}
  task['label'] = [{**value, 'ellipselabels': ['cat']}]
  objects, _ = read_one('label_studio', tmp_path, [task])
  ((name, found),) = objects
  assert name == 'cat'
  np.testing.assert_allclose(found['bbox'], [40, 10, 20, 60], atol=1e-9)


def via(*regions, form=list):
  regions = list(regions)
  if form is dict:
    regions = {str(number): each for number, each in enumerate(regions)}
  return {'a.png-1': {'filename': 'a.png', 'size': -1, 'regions': regions}}


def region(attributes, name='polygon', **shape):
  if not shape:
    x, y = zip(*SQUARE)
    shape = {'all_points_x': x, 'all_points_y': y}
  shape = {'name': name, **shape}
  return {'shape_attributes': shape, 'region_attributes': attributes}


@pytest.mark.parametrize('form', [list, dict])
@pytest.mark.parametrize('project', [False, True])
def test_via(folder, form, project):
  content = via(
    region({'animal': 'cat'}),
    region({'name': 'dog', 'animal': 'x'}, 'polyline'),
    region({'animal': {'dog': True, 'cat': False}}),
    region({'animal': 'cat'}, 'rect', x=0, y=0, width=2, height=2),
    region({'a': 'x', 'b': 'y'}),
    region({'animal': 'cat'}, 'point', cx=1, cy=1),
    form=form,
  )
  if project:
    content = {'_via_settings': {}, '_via_img_metadata': content}
  objects, findings = read_one('via', folder, content)
  assert [(name, x['area']) for name, x in objects] == [
    *(('cat', 4), ('dog', 4), ('dog', 4))
  ]
  assert [x.kind for x in findings] == [
    *('box_without_mask', 'class_name', 'shape_without_area')
  ]


def test_via_shapes_without_attributes_are_of_one_class(tmp_path):
  make_image(tmp_path / 'images' / 'a.png', (100, 80))
  content = via(
    region({}, 'circle', cx=50, cy=40, r=20),
    region({}, 'ellipse', cx=50, cy=40, rx=30, ry=10, theta=0),
  )
  objects, _ = read_one('via', tmp_path, content)
  assert {name for name, _ in objects} == {'object'}
  np.testing.assert_allclose(objects[0][1]['bbox'], [30, 20, 40, 40], atol=1e-9)
  np.testing.assert_allclose(objects[1][1]['bbox'], [20, 30, 60, 20], atol=1e-9)
  objects, _ = read_one('via', tmp_path, content, classes='balloon')
  assert {name for name, _ in objects} == {'balloon'}


def test_an_object_without_class_beside_others_is_skipped(folder):
  content = via(region({'class': 'cat'}), region({}))
  objects, findings = read_one('via', folder, content)
  assert [name for name, _ in objects] == ['cat']
  assert [x.kind for x in findings] == ['class_name']
  objects, findings = read_one('via', folder, content, classes='cat')
  assert [name for name, _ in objects] == ['cat', 'cat'] and not findings


def test_via_angles_are_radians(tmp_path):
  make_image(tmp_path / 'images' / 'a.png', (100, 80))
  shape = {'cx': 50, 'cy': 40, 'rx': 30, 'ry': 10, 'theta': np.pi / 2}
  content = via(region({'class': 'cat'}, 'ellipse', **shape))
  ((_, found),), _ = read_one('via', tmp_path, content)
  np.testing.assert_allclose(found['bbox'], [40, 10, 20, 60], atol=1e-9)


def test_supervisely(folder):
  def entry(kind, **more):
    return {'classTitle': 'cat', 'geometryType': kind, **more}

  points = {'exterior': [[0, 0], [4, 0], [4, 3], [0, 3]]}
  hole = [[[1, 1], [3, 1], [3, 2], [1, 2]]]
  objects = [
    entry('bitmap', bitmap={'data': BITMAP, 'origin': [1, 0]}),
    entry('bitmap', bitmap={'data': PATCH, 'origin': [1, 0]}),
    entry('polygon', points={**points, 'interior': hole}),
    entry('rectangle', points=points),
    entry('bitmap', bitmap={'data': 'x', 'origin': [1, 0]}),
  ]
  content = {'size': {'height': 3, 'width': 4}, 'objects': objects}
  objects, findings = read_one(
    'supervisely', folder, content, 'labels/ann/a.png.json'
  )
  assert [x['area'] for _, x in objects] == [3, 3, 10]
  assert objects[0][1]['segmentation'] == objects[1][1]['segmentation'] == RLE
  expected = np.ones((3, 4), bool)
  expected[1, 1:3] = False
  np.testing.assert_array_equal(decode(objects[2][1], 3, 4), expected)
  assert [x.kind for x in findings] == ['box_without_mask', 'unusable_mask']


def test_voc_colours_of_a_label_map(folder):
  colours = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 255: (224, 224, 192)}
  numbers = np.array([[1, 1, 255, 2], [1, 1, 255, 2], [0, 0, 0, 0]])
  pixels = np.array([[colours[x] for x in row] for row in numbers], np.uint8)
  save_mask(folder / 'labels' / 'SegmentationObject' / 'a.png', pixels)
  pixels[:, 3] = (0, 0, 128)
  save_mask(folder / 'labels' / 'SegmentationClass' / 'a.png', pixels)
  (folder / 'labels' / 'labelmap.txt').write_text(
    '# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\n'
    'dog:0,0,128::\n'
  )
  content, _ = read('voc', folder)
  names = {x['id']: x['name'] for x in content['categories']}
  found = {names[x['category_id']]: x['area'] for x in content['annotations']}
  assert found == {'dog': 2, 'cat': 4}


@pytest.mark.parametrize('colour', ['128,0,0', '0_1,0,0', '320,0,0'])
def test_voc_colours_that_mean_no_class(folder, colour):
  save_mask(folder / 'labels/SegmentationObject/a.png', np.ones((3, 4), bool))
  (folder / 'labels' / 'SegmentationClass').mkdir()
  path = folder / 'labels' / 'labelmap.txt'
  path.write_text(f'cat:128,0,0::\ndog:{colour}::\n')
  with pytest.raises(UserError) as error:
    read('voc', folder)
  assert error.value.path == str(path)


def test_cityscapes(tmp_path):
  stem = 'aachen/aachen_000001_000019'
  make_image(tmp_path / 'images' / f'{stem}_leftImg8bit.png', (4, 3))
  # Car 26: an object and a group; road 7; a caravan, which is not evaluated.
  numbers = np.array([[26000] * 4, [26, 26, 7, 7], [33001, 33001, 29000, 0]])
  path = tmp_path / 'labels' / f'{stem}_gtFine_instanceIds.png'
  save_mask(path, numbers.astype(np.uint16))
  content, findings = read('cityscapes', tmp_path)
  assert [x['name'] for x in content['categories']] == [
    *('person', 'rider', 'car', 'truck', 'bus', 'train', 'motorcycle'),
    'bicycle',
  ]
  assert [x['id'] for x in content['categories']] == list(range(1, 9))
  assert [
    (x['category_id'], x['area'], x['iscrowd']) for x in content['annotations']
  ] == [(3, 2, 1), (3, 4, 0), (8, 2, 0)]
  assert sorted(x.kind for x in findings) == ['category_id', 'no_instance']
  assert {x.severity for x in findings} == {'warning'}


def test_roboflow_wants_one_split(folder):
  for split in ('train', 'valid'):
    save_json(folder / 'labels' / split / '_annotations.coco.json', coco())
  with pytest.raises(ValueError) as error:
    read('roboflow', folder)
  assert error.value.given == 2


def test_labelme_files_of_other_names_say_their_image(folder):
  content = labelme(shape('polygon', SQUARE), imagePath='..\\x\\images\\a.png')
  objects, _ = read_one('labelme', folder, content, 'labels/1.json')
  assert len(objects) == 1


def test_supervisely_data_sets_may_share_names_of_images(tmp_path):
  content = {'size': {'height': 3, 'width': 4}, 'objects': []}
  for name in ('one', 'two'):
    make_image(tmp_path / 'images' / name / 'img' / 'a.png', (4, 3))
    save_json(tmp_path / 'images' / name / 'ann' / 'a.png.json', content)
  content, findings = read('supervisely', tmp_path, labels='images')
  assert len(content['images']) == 2
  assert not [x for x in findings if x.severity != 'note']
