"""Labels written in other formats, and read back."""

import json

import numpy as np
import pytest
from label_sets import (
  MAKERS,
  NUMBERS,
  coco,
  decode,
  kinds,
  make,
  read,
  save_json,
)

from maskrcnn_jax.cli import main as command
from maskrcnn_jax.datasets import coco_files, coco_json
from maskrcnn_jax.datasets.formats import writers
from maskrcnn_jax.errors import UserError


@pytest.mark.parametrize('name', MAKERS)
def test_a_clean_coco_json_of_every_format(tmp_path, name):
  labels = make(name, tmp_path)
  classes = 'cat,dog' if name.endswith('_png') else None
  path = tmp_path / 'clean.json'
  images = tmp_path / 'images'
  summary = writers.write(images, labels, path, 'coco', classes=classes)
  assert summary.data_format == name
  assert (summary.num_images, summary.num_objects) == (1, 2)
  dataset = coco_files.find(coco_json.load(path), images)
  assert {x.kind for x in dataset.findings} <= {'ids_from_0'}
  (entries,) = dataset.annotations.values()
  names = dataset.class_names.values()
  assert {'cat', 'dog'} <= set(names) or {'car', 'person'} <= set(names)
  found = sorted((decode(each) for each in entries), key=np.count_nonzero)
  np.testing.assert_array_equal(found, [NUMBERS == 9, NUMBERS == 5])
  assert sorted(x['area'] for x in entries) == [2, 6]
  with pytest.raises(FileExistsError):
    writers.write(images, labels, path)


def test_labelme_and_back(tmp_path):
  content = coco()
  parts = [[0, 0, 2, 0, 2, 2, 0, 2], [4, 2, 6, 2, 6, 4, 4, 4]]
  more = {'id': 3, 'image_id': 1, 'category_id': 1, 'area': 8}
  more |= {'bbox': [0, 0, 6, 4], 'segmentation': parts}
  crowd = {**more, 'id': 4, 'iscrowd': 1}
  content['annotations'] += [more, crowd]
  make('coco', tmp_path)
  save_json(tmp_path / 'labels.json', content)
  summary = writers.write(
    tmp_path / 'images', tmp_path / 'labels.json', tmp_path / 'out', 'labelme'
  )
  assert kinds(summary.findings) == [('crowd', 'a.png', 'warning')]
  written = json.loads((tmp_path / 'out' / 'a.json').read_text())
  assert written['imagePath'] == '../images/a.png'
  found, _ = read('labelme', tmp_path, labels='out')
  assert found['categories'] == content['categories']
  for old, new in zip(content['annotations'], found['annotations']):
    assert old['category_id'] == new['category_id']
    assert old['segmentation'] == new['segmentation']
    np.testing.assert_array_equal(decode(old), decode(new))


def test_yolo_and_back(tmp_path):
  make('coco', tmp_path)
  summary = writers.write(
    tmp_path / 'images', tmp_path / 'labels.json', tmp_path / 'out', 'yolo'
  )
  assert kinds(summary.findings) == [('not_one_polygon', 'a.png', 'warning')]
  text = (tmp_path / 'out' / 'a.txt').read_text()
  corners = ('0.166667 0.000000', '0.666667 0.000000')
  corners += ('0.666667 0.500000', '0.166667 0.500000')
  assert text == ' '.join(['0', *corners]) + '\n'
  found, _ = read('yolo', tmp_path, labels='out')
  assert [x['name'] for x in found['categories']] == ['cat', 'dog']
  (each,) = found['annotations']
  np.testing.assert_array_equal(decode(each), NUMBERS == 5)


def test_yolo_has_a_line_for_every_class(tmp_path):
  make('coco', tmp_path)
  content = coco()
  content['categories'][0]['name'] = ' black\ncat'
  save_json(tmp_path / 'labels.json', content)
  writers.write(
    tmp_path / 'images', tmp_path / 'labels.json', tmp_path / 'out', 'yolo'
  )
  lines = (tmp_path / 'out' / 'classes.txt').read_text().splitlines()
  assert lines == ['black cat', content['categories'][1]['name']]


def test_the_command(tmp_path, capsys):
  labels = make('labelme', tmp_path)
  arguments = [
    'prepare',
    f'--images={tmp_path / "images"}',
    f'--annotations={labels}',
    f'--output={tmp_path / "clean.json"}',
    '--to=coco',
  ]
  assert command.main([*arguments, '--num_shards=2']) == 2
  assert '--num_shards' in capsys.readouterr().err
  assert command.main(arguments) == 0
  text = capsys.readouterr().out
  assert 'labelme' in text and 'clean.json' in text
  assert json.loads((tmp_path / 'clean.json').read_text())['annotations']


def test_an_unknown_format_to_write(tmp_path):
  with pytest.raises(UserError) as error:
    writers.write(tmp_path, tmp_path, tmp_path / 'x', 'via')
  assert error.value.argument == 'to'
