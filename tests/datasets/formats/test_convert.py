"""`prepare` of other label formats: records, COCO JSON, class names."""

import json

import label_sets
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_jax.cli import main as command
from maskrcnn_jax.datasets import categories, ground_truth, prepare, records
from maskrcnn_jax.datasets.categories import Category
from maskrcnn_jax.datasets.findings import InvalidDataError
from maskrcnn_jax.datasets.formats import class_names
from maskrcnn_jax.errors import UserError


def write_images(folder, names=('b.png', 'sub/a.png'), size=(40, 20)):
  rng = np.random.default_rng(0)
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 255, (*size[::-1], 4)).astype(np.uint8)
    Image.fromarray(pixels).save(path)  # RGBA


@pytest.fixture
def yolo(tmp_path):
  """Two images, one of them without objects, and three classes."""
  write_images(tmp_path / 'images')
  (tmp_path / 'labels').mkdir()
  (tmp_path / 'labels' / 'b.txt').write_text(
    '2 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n0 0 0 0.5 0 0.5 0.5\n'
  )
  (tmp_path / 'data.yaml').write_text('names: [cat, dog, cow]\n')
  return tmp_path


def run(folder, name='yolo', labels='labels', **kwargs):
  return prepare.prepare(
    folder / 'images',
    folder / labels,
    folder / 'out' / 'train',
    num_workers=1,
    data_format=name,
    **kwargs,
  )


def test_yolo_becomes_records_and_a_json_with_its_own_numbers(yolo):
  summary = run(yolo)
  assert (summary.num_images, summary.num_empty) == (2, 1)
  path = yolo / 'out' / 'instances_train.json'
  assert summary.annotations_file == str(path)
  content = json.loads(path.read_text())
  assert [x['file_name'] for x in content['images']] == ['b.png', 'sub/a.png']
  assert [x['id'] for x in content['categories']] == [0, 1, 2]
  assert [x['category_id'] for x in content['annotations']] == [2, 0]
  found = categories.read_from_records(summary.files[0])
  assert found == {
    1: Category('cat', 0),
    3: Category('cow', 2),
  }
  # The JSON made of the records says the same.
  index = records.index_records(summary.files[0])
  truth = ground_truth.coco_from_records(index)
  assert [x['category_id'] for x in truth['annotations']] == [2, 0]
  assert truth['categories'] == [
    {'id': 0, 'name': 'cat'},
    {'id': 2, 'name': 'cow'},
  ]
  assert summary.counts() == {
    'class_without_objects': 1,
    'ids_from_0': 1,
    'missing_label': 1,
  }


def test_a_png_of_numbers_becomes_records(tmp_path):
  write_images(tmp_path / 'images', ['a.png'])
  (tmp_path / 'masks').mkdir()
  numbers = np.zeros((20, 40), np.uint16)
  numbers[2:5, 3:10], numbers[10:12, 30:40] = 1, 700
  Image.fromarray(numbers).save(tmp_path / 'masks' / 'a.png')
  summary = run(tmp_path, 'instance_png', 'masks', classes='cell')
  assert (summary.num_images, summary.num_objects) == (1, 2)
  content = json.loads((tmp_path / 'out/instances_train.json').read_text())
  assert content['categories'] == [{'id': 1, 'name': 'cell'}]
  parsed = records.parse_record(
    records.read_record(records.index_records(summary.files[0]), 0)
  )
  np.testing.assert_allclose(
    parsed['boxes'] * [20, 40, 20, 40],
    [[2, 3, 5, 10], [10, 30, 12, 40]],
    atol=1e-5,
  )
  for number, png, entry in zip(
    (1, 700), parsed['masks'].numpy(), content['annotations']
  ):
    mask = records.tf.io.decode_png(png)[..., 0].numpy()
    np.testing.assert_array_equal(mask, numbers == number)
    decoded = coco_mask.decode(entry['segmentation'])
    np.testing.assert_array_equal(decoded, numbers == number)


def test_a_png_for_every_object_by_the_command(tmp_path, capsys):
  # The layout of DSB2018: one folder holds both.
  place = tmp_path / 'stage1' / 'x'
  write_images(place / 'images', ['x.png'])
  (place / 'masks').mkdir()
  mask = np.zeros((20, 40), np.uint8)
  mask[4:8, 5:9] = 255
  for number in range(3):
    Image.fromarray(np.roll(mask, 6 * number)).save(
      place / 'masks' / f'{number}.png'
    )
  flags = {
    'images': tmp_path / 'stage1',
    'annotations': tmp_path / 'stage1',
    'output': tmp_path / 'out' / 'val',
    'format': 'object_png',
    'classes': 'nucleus',
    'num_workers': 1,
  }
  arguments = ['prepare', *(f'--{k}={v}' for k, v in flags.items())]
  assert command.main(arguments) == 0
  text = capsys.readouterr().out
  assert '1 images, 0 of them without objects' in text
  assert '3 objects' in text
  assert 'out/instances_val.json' in text
  assert command.main(arguments) == 2  # Nothing is overwritten.
  assert 'instances_val.json' in capsys.readouterr().err


def test_errors_leave_nothing_behind(yolo):
  with (yolo / 'labels' / 'b.txt').open('a') as file:
    file.write('7 0 0 1 0 1 1\n')
  with pytest.raises(InvalidDataError, match='line 3') as error:
    run(yolo)
  assert error.value.path == str(yolo / 'labels' / 'b.txt')
  assert not (yolo / 'out').exists()


def test_a_wrong_folder_of_text_files_is_named(yolo):
  (yolo / 'labels' / 'b.txt').rename(yolo / 'labels' / 'c.txt')
  with pytest.raises(UserError) as error:
    run(yolo)
  assert error.value.path == str(yolo / 'labels')


@pytest.mark.parametrize(
  'name, content',
  [
    ('data.yaml', b'a: &a [x, x]\nnames: [*a, *a]'),
    ('data.yaml', b'names: ' + b'[' * 5000),
    ('data.yaml', b'names: [' + b'a, ' * 100_000 + b']'),
    ('data.yaml', b'names: 2001-99-99'),
    ('classes.txt', b'caf\xe9\n'),
  ],
)
def test_names_that_cannot_be_read(tmp_path, name, content):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(UserError) as error:
    class_names.read(str(path))
  assert error.value.path == str(path)


@pytest.mark.parametrize(
  'name, text, expected',
  [
    ('data.yaml', 'names: [cat, dog]', {0: 'cat', 1: 'dog'}),
    ('data.yaml', 'names:\n  0: cat\n  3: dog\n', {0: 'cat', 3: 'dog'}),
    ('classes.txt', 'cat\n\ndog \n', {0: 'cat', 1: 'dog'}),
  ],
)
def test_names_are_found_or_given(tmp_path, name, text, expected):
  folder = tmp_path / 'labels' / 'train'
  folder.mkdir(parents=True)
  with pytest.raises(UserError) as error:
    class_names.find(folder)
  assert (error.value.argument, error.value.path) == ('classes', str(folder))
  path = tmp_path / name
  path.write_text(text)
  assert class_names.find(folder) == str(path)
  assert class_names.read(str(path), 0) == expected
  moved = {number + 1: text for number, text in expected.items()}
  assert class_names.read(str(path)) == moved
  assert class_names.read('a, b', 0) == {0: 'a', 1: 'b'}
  with pytest.raises(UserError) as error:
    class_names.read(str(folder / 'no.txt'))
  assert error.value.path == str(folder / 'no.txt')


def test_files_of_names_must_not_contradict_each_other(tmp_path):
  near = tmp_path / 'labels' / 'classes.txt'
  near.parent.mkdir()
  near.write_text('cat\n')  # As far as it goes.
  (tmp_path / 'data.yaml').write_text('names: [cat, dog]')
  (tmp_path / 'obj.names').write_text('')  # No names at all.
  assert class_names.find(near.parent) == str(near)
  near.write_text('dog\ncat\n')
  with pytest.raises(UserError) as error:
    class_names.find(near.parent)
  assert (error.value.item, error.value.given) == ('dog', 'cat')
  assert error.value.path == str(tmp_path / 'data.yaml')


@pytest.mark.parametrize(
  'changes, field, value',
  [
    ({'name': 'pascal'}, 'argument', 'format'),
    ({'name': 'coco', 'classes': 'a'}, 'argument', 'classes'),
    ({'labels': 'none'}, 'path', '{folder}/none'),
    ({'name': 'instance_png', 'labels': 'images'}, 'path', '{folder}/images'),
    ({'classes': 'a,,b'}, 'given', 'a,,b'),
  ],
)
def test_wrong_arguments(yolo, changes, field, value):
  with pytest.raises(UserError) as error:
    run(yolo, **changes)
  assert getattr(error.value, field) == value.format(folder=yolo)


def test_brush_masks_of_cvat_are_learnt_from_and_crowds_are_not(tmp_path):
  labels = label_sets.make('cvat_coco', tmp_path)
  (path,) = labels.rglob('*.json')
  content = json.loads(path.read_text())
  del content['annotations'][0]
  path.write_text(json.dumps(content))
  arguments = tmp_path / 'images', path, tmp_path / 'out' / 'train'
  with pytest.raises(UserError) as error:
    prepare.prepare(*arguments, num_workers=1, data_format='coco')
  assert error.value.path == str(path)
  summary = prepare.prepare(*arguments, num_workers=1)
  assert summary.data_format == 'cvat_coco'
  assert (summary.num_objects, summary.num_crowd) == (1, 0)
