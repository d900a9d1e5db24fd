"""Detections as labels: files, and the way back through `prepare`."""

import json
import sys
import types

import numpy as np
import pytest
from found import make_found
from PIL import Image

from maskrcnn_jax.datasets import ground_truth, masks, prepare, records
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.inference import labels, writer
from maskrcnn_jax.inference.image_files import list_images
from maskrcnn_jax.inference.output_folder import OutputFolder

NAMES = {1: 'cat', 2: 'guinea  pig/x'}
SIZE = (60, 90)


def disc(radius, hole=0.0, size=28):
  """A soft mask of a disc, with a hole in the middle."""
  y, x = np.mgrid[:size, :size] - (size - 1) / 2
  distance = np.hypot(y, x) * 2 / size
  inside = (distance < radius) & (distance >= hole)
  return inside.astype(np.float32)


@pytest.fixture(scope='module')
def found():
  """A disc, a ring, two halves, nothing, and an object of an unnamed class."""
  halves = disc(0.9)
  halves[:, 11:17] = 0.0
  return make_found(
    [
      [5, 5, 45, 45],
      [10, 50, 40, 85],
      [20, 20, 58, 60],
      [1, 1, 9, 9],
      [3, 60, 20, 80],
    ],
    [0.9, 0.8, 0.7, 0.6, 0.5],
    [1, 2, 1, 2, 5],
    np.stack([disc(0.8), disc(0.9, 0.4), halves, disc(0.0), disc(0.9)]),
  )


@pytest.fixture(scope='module')
def output(found, tmp_path_factory):
  """Folders of two images and of what is written for them."""
  folder = tmp_path_factory.mktemp('labels')
  rng = np.random.default_rng(0)
  for name in ('a.png', 'sub/b.png'):
    (folder / 'images' / name).parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(folder / 'images' / name)
  files, _ = list_images([folder / 'images'], folder / 'out')
  names = [*labels.output_names(files, labels.KINDS), 'images.json']
  out = OutputFolder(folder / 'out', [*names, *(x.picture for x in files)])
  out.claim({})
  with writer.Writer(
    folder=out.path,
    class_names=NAMES,
    category_ids={1: 7},
    min_score=0.0,
    side=64,
    save=labels.KINDS,
  ) as made:
    for file in files:
      image = np.asarray(Image.open(file.path))
      texts = made.make_texts(file, image, found)
      made.keep(file, types.SimpleNamespace(result=lambda texts=texts: texts))
    made.write_summaries(files)
  out.finish({})
  return folder


def prepared(folder, annotations, tmp_path, **options):
  """Objects of records made of labels, by image id."""
  summary = prepare.prepare(
    folder / 'images', annotations, tmp_path / 'r', num_workers=1, **options
  )
  index = records.index_records(list(summary.files))
  return ground_truth.coco_from_records(index), summary


def masks_of(found):
  return found.full_masks(SIZE)


def iou(one, other):
  return np.sum(one & other) / np.sum(one | other)


def assert_same_objects(content, expected, least_iou):
  """Every image has these (name, mask), in order."""
  names = {x['id']: x['name'] for x in content['categories']}
  for image in content['images']:
    objects = [
      x for x in content['annotations'] if x['image_id'] == image['id']
    ]
    assert len(objects) == len(expected)
    for each, (name, mask) in zip(objects, expected):
      assert names[each['category_id']] == name
      read = masks.decode_segmentation(each['segmentation'], *SIZE)
      assert iou(read, mask) >= least_iou


def test_classes_whose_names_are_alike_have_folders_of_their_own(
  tmp_path, found
):
  (tmp_path / 'a.png').touch()
  (file,), _ = list_images([tmp_path / 'a.png'], tmp_path / 'out')
  names = {1: 'a/b', 2: 'A_b', 5: '7', 7: 'a_b-2'}
  image = np.zeros((*SIZE, 3), np.uint8)
  both = found.replace(classes=np.array([1, 2, 1, 5, 7]))
  labels.write_image(tmp_path, file, image, both, names, ['masks'])
  assert {str(x.relative_to(tmp_path)) for x in tmp_path.rglob('00*')} == {
    'masks/a/a_b/001.png',
    'masks/a/A_b-2/002.png',
    'masks/a/a_b/003.png',
    'masks/a/7-5/004.png',
    'masks/a/a_b-2-7/005.png',
  }


def test_labelme_and_back(output, found, tmp_path):
  content, summary = prepared(output, output / 'out' / 'labelme', tmp_path)
  assert summary.data_format == 'labelme'
  whole = masks_of(found)
  expected = [*zip(('cat', NAMES[2], 'cat'), whole)]
  assert len(content['images']) == 2
  assert_same_objects(content, expected, 0.95)
  # The ring is a mask, and exact.
  ring = [x for x in content['annotations'] if x['category_id'] == 2]
  read = masks.decode_segmentation(ring[0]['segmentation'], *SIZE)
  np.testing.assert_array_equal(read, whole[1])
  label = json.loads((output / 'out/labelme/sub/b.json').read_text())
  kinds = [x['shape_type'] for x in label['shapes']]
  assert kinds == ['polygon', 'mask', 'polygon', 'polygon']
  groups = [x['group_id'] for x in label['shapes']]
  assert groups[2] == groups[3] is not None
  photo = output / 'out/labelme/sub' / label['imagePath']
  assert photo.resolve() == (output / 'images/sub/b.png').resolve()


def test_coco_and_back(output, found, tmp_path):
  path = output / 'out' / 'labels.json'
  content, summary = prepared(output, path, tmp_path)
  assert summary.data_format == 'coco'
  names = ('cat', NAMES[2], 'cat')
  assert_same_objects(content, [*zip(names, masks_of(found))], 0.95)
  written = json.loads(path.read_text())
  assert [x['id'] for x in written['annotations']] == [1, 2, 3, 4, 5, 6]
  assert [x['category_id'] for x in written['annotations'][:3]] == [7, 2, 7]
  assert [x['file_name'] for x in written['images']] == ['a.png', 'sub/b.png']
  scores = [x['score'] for x in written['annotations'][:3]]
  np.testing.assert_allclose(scores, [0.9, 0.8, 0.7])


def test_yolo_and_back(output, found, tmp_path):
  content, summary = prepared(output, output / 'out' / 'yolo', tmp_path)
  assert summary.data_format == 'yolo'
  whole = masks_of(found)
  filled = whole[1].copy()
  filled[18:32, 60:75] = True  # The hole.
  half = whole[2].copy()
  half[:, 40:] = False  # The halves are alike, and the left one is first.
  names = ('cat', 'guinea pig/x', 'cat')
  assert_same_objects(content, [*zip(names, (whole[0], filled, half))], 0.9)


def test_masks_and_crops(output, found):
  out = output / 'out'
  whole = masks_of(found)
  read = np.asarray(Image.open(out / 'masks/a/cat/001.png'))
  np.testing.assert_array_equal(read, 255 * whole[0])
  assert (out / 'masks/b/guinea pig_x/002.png').is_file()
  assert (out / 'masks/b/5/005.png').is_file()
  crop = np.asarray(Image.open(out / 'crops/a/001-cat.png'))
  image = np.asarray(Image.open(output / 'images/a.png'))
  np.testing.assert_array_equal(crop[..., :3], image[5:45, 5:45])
  np.testing.assert_array_equal(crop[..., 3], 255 * whole[0, 5:45, 5:45])
  assert len(list((out / 'crops/a').iterdir())) == 5


def test_files_of_an_earlier_run_are_replaced(output, tmp_path):
  listed = json.loads((output / 'out/predict.json').read_text())['files']
  assert {'crops/a/', 'masks/b/', 'labels.json', 'yolo/sub/b.txt'} <= {*listed}
  folder = tmp_path / 'out'
  (folder / 'crops' / 'a').mkdir(parents=True)
  (folder / 'crops' / 'a' / '001-cat.png').touch()
  (folder / 'labels.json').touch()
  lost = ['crops/a/', 'labels.json', 'labelme/../../x.json', 'masks/../', '/x']
  (tmp_path / 'x.json').touch()
  (folder / 'predict.json').write_text(json.dumps({'files': lost}))
  made = OutputFolder(folder, ['labels.json'])
  made.claim({})
  assert [x.name for x in folder.iterdir()] == ['predict.json', 'crops']
  assert not list((folder / 'crops').iterdir())
  assert (tmp_path / 'x.json').exists()


def test_links_and_files_of_others(tmp_path):
  folder = tmp_path / 'out'
  folder.mkdir()
  (folder / 'predict.json').write_text('{"files": []}')
  (folder / 'masks').mkdir()
  (folder / 'masks' / 'a').mkdir()
  with pytest.raises(FileExistsError, match='masks/a'):
    OutputFolder(folder, ['masks/a/'])
  (folder / 'labelme').symlink_to(tmp_path)
  with pytest.raises(UserError) as error:
    OutputFolder(folder, ['labelme/a.json'])
  assert error.value.path == str(folder / 'labelme')


def test_what_cannot_be_saved(tmp_path):
  for name in ('a.png', 'a.jpg', 'classes.png'):
    Image.new('RGB', (8, 8)).save(tmp_path / name)
  files, _ = list_images([tmp_path], tmp_path / 'out')
  for save, given in (('page',), None), (('yolo',), 'yolo'), (('labelme',), 0):
    with pytest.raises(UserError) as error:
      labels.output_names(files, save)
    assert error.value.argument == 'save'
    if given:
      assert error.value.given == given
  assert labels.output_names(files, ('masks',)) == [
    *('masks/a/', 'masks/a-2/', 'masks/classes/'),
  ]
  with pytest.raises(UserError) as error:
    labels.check_names({}, ('crops', 'coco'))
  assert error.value.given == 'coco'
  labels.check_names({}, ('crops', 'masks'))


def test_forms_in_python(found, monkeypatch):
  whole = found.full_masks(SIZE)
  assert whole.shape == (5, *SIZE) and whole.dtype == bool
  for runs, mask in zip(found.run_lengths(SIZE), whole):
    np.testing.assert_array_equal(masks.decode_segmentation(runs, *SIZE), mask)
  parts = found.polygons(SIZE)
  assert [len(each) for each in parts] == [1, 1, 2, 0, 1]
  assert [len(each[0].holes) if each else 0 for each in parts] == [
    0,
    1,
    0,
    0,
    0,
  ]
  # The package is not required: what it is given.
  stand_in = types.SimpleNamespace(Detections=types.SimpleNamespace)
  monkeypatch.setitem(sys.modules, 'supervision', stand_in)
  made = found.to_supervision(SIZE, NAMES)
  np.testing.assert_array_equal(made.xyxy[0], [5, 5, 45, 45])
  np.testing.assert_array_equal(made.xyxy[1], [50, 10, 85, 40])
  np.testing.assert_array_equal(made.mask, whole)
  np.testing.assert_array_equal(made.confidence, found.scores)
  np.testing.assert_array_equal(made.class_id, [1, 2, 1, 2, 5])
  names = ['cat', NAMES[2], 'cat', NAMES[2], '5']
  assert made.data['class_name'].tolist() == names
  assert found.replace(masks=None).to_supervision(SIZE).mask is None
