"""Image files of a COCO JSON, by names of this and of other systems."""

import json

import numpy as np
import pytest
from PIL import Image

from maskrcnn_jax.datasets import coco_files, coco_json, ground_truth, records
from maskrcnn_jax.datasets import prepare as prepare_lib
from maskrcnn_jax.datasets.doctor import check
from maskrcnn_jax.datasets.formats import writers
from maskrcnn_jax.inference import image_files


def find(folder, names, **options):
  """The dataset of images with the ids 1, 2, ... in a folder."""
  content = {
    'images': [
      {'id': i, 'file_name': name, 'height': 20, 'width': 30}
      for i, name in enumerate(names, 1)
    ]
  }
  dataset = coco_json.parse(content, 'a.json')
  return coco_files.find(dataset, folder, **options)


@pytest.fixture
def folder(tmp_path):
  names = ('1.png', 'My 1.PNG', 'sub/2.png', 'x/3.png', 'y/3.png')
  for name in (*names, 'cafe\u0301.png'):  # As macOS writes é.
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  return tmp_path


@pytest.mark.parametrize(
  'name, wanted',
  [
    ('images\\1.png', '1.png'),
    ('sub\\2.png', 'sub/2.png'),
    ('2.png', 'sub/2.png'),
    ('..\\..\\upload\\4\\1.png', '1.png'),
    ('C:\\photos\\sub\\2.png', 'sub/2.png'),
    ('c:1.png', '1.png'),
    ('\\\\server\\share\\1.png', '1.png'),
    ('D:\\photos\\x\\3.png', 'x/3.png'),
    ('/home/me/1.png', '1.png'),
    ('/data/local-files/?d=batch%201/1.png', '1.png'),
    ('https://a.b/c/my%201.png?x=2', 'My 1.PNG'),
    ('file:///C:/photos/1.png', '1.png'),
    ('MY 1.png', 'My 1.PNG'),
    ('caf\u00e9.png', 'cafe\u0301.png'),
    ('CAF\u00c9.PNG', 'cafe\u0301.png'),
  ],
)
def test_names_of_other_systems_are_looked_up(folder, name, wanted):
  dataset = find(folder, [name])
  assert [x.file_name for x in dataset.images] == [wanted]
  (note,) = dataset.findings
  assert (note.kind, note.severity, note.image_id) == ('file_name', 'note', 1)
  assert ('Windows' in note.message) == ('\\' in name)


@pytest.mark.parametrize(
  'names, kinds',
  [
    (['1.png', 'sub/2.png'], []),
    (['none\\7.png'], ['missing_image']),
    (['1.jpg'], ['missing_image']),
    (['3.png'], ['missing_image']),  # There are two.
    (['z\\3.png'], ['missing_image']),
    (['a\\1.png', 'b\\1.png'], ['missing_image'] * 2),
    (['1.png', 'a\\1.png'], ['missing_image']),
    (['../9.png', '/9.png'], ['outside_folder'] * 2),
    (['a.png\0', '..'], ['outside_folder'] * 2),
  ],
)
def test_what_is_not_one_file_is_an_error(folder, names, kinds):
  dataset = find(folder, names)
  assert [x.file_name for x in dataset.images] == names
  assert [x.kind for x in dataset.findings] == kinds
  assert {x.severity for x in dataset.findings} <= {'error'}
  assert not find(folder, names, required=False).findings


def test_all_files_that_a_name_may_mean_are_listed(folder):
  (finding,) = find(folder, ['3.png']).findings
  assert "['x/3.png', 'y/3.png']" in finding.message


def test_missing_images_are_listed(tmp_path):
  (tmp_path / '3.jpg').write_bytes(b'')
  dataset = find(tmp_path, [f'{k}.jpg' for k in range(1, 15)])
  missing = [x.image_id for x in dataset.findings]
  assert missing == [k for k in range(1, 15) if k != 3]
  assert f'{tmp_path}/1.jpg' in dataset.findings[0].message


def test_every_command_takes_the_same_file(tmp_path):
  images, path = tmp_path / 'images', tmp_path / 'a.json'
  images.mkdir()
  for number in (1, 2):
    pixels = np.full((20, 30, 3), 100 * number, np.uint8)
    Image.fromarray(pixels).save(images / f'{number}.png')
  square = [2, 2, 9, 2, 9, 9, 2, 9]
  content = {
    'images': [
      {'id': 10 * i, 'file_name': f'C:\\p\\{i}.png', 'height': 20, 'width': 30}
      for i in (1, 2)
    ],
    'annotations': [
      {'id': i, 'image_id': 10 * i, 'category_id': 1, 'area': 49, 'iscrowd': 0}
      | {'bbox': [2, 2, 7, 7], 'segmentation': [square]}
      for i in (1, 2)
    ],
    'categories': [{'id': 1, 'name': 'cat'}],
  }
  path.write_text(json.dumps(content))
  summary = prepare_lib.prepare(images, path, tmp_path / 'r', num_workers=1)
  assert [x.kind for x in summary.findings] == ['file_name']
  index = records.index_records(list(summary.files))
  truth = ground_truth.coco_from_records(index)
  assert [x['image_id'] for x in truth['annotations']] == [10, 20]
  report = check.check((images, path), num_workers=1)
  assert not report.count('error')
  assert 'file_name' in report.by_kind()
  files, _ = image_files.list_images([images], tmp_path / 'out', path)
  assert [(x.path.name, x.image_id) for x in files] == [
    ('1.png', 10),
    ('2.png', 20),
  ]
  writers.write(images, path, tmp_path / 'clean.json')
  clean = json.loads((tmp_path / 'clean.json').read_text())
  assert [x['file_name'] for x in clean['images']] == ['1.png', '2.png']
