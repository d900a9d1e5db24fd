"""Fingerprints of images and labels: what counts as a change."""

import hashlib
import json
import os
import shutil

import label_sets
import pytest

from maskrcnn_jax.datasets import fingerprints
from maskrcnn_jax.datasets.formats import convert
from maskrcnn_jax.datasets.formats.source import Source
from maskrcnn_jax.errors import UserError

# Files besides the labels that a reader opens; above the labels.
_ABOVE = {'yolo': 'data.yaml', 'supervisely': 'meta.json'}


def take(name, folder):
  """Source of a format, and fingerprints of its labels and images."""
  source = Source(folder / 'images', label_sets.find_labels(folder), None, 1)
  options = source, name
  listed = ['a.png']
  return (
    source,
    fingerprints.of_labels(*options),
    fingerprints.of_images(*options, listed),
  )


def changes(name, folder, labels, images):
  source = Source(folder / 'images', label_sets.find_labels(folder), None, 1)
  return fingerprints.changes(source, name, labels, images)


@pytest.mark.parametrize('name', label_sets.MAKERS)
def test_any_changed_label_and_image_is_noticed(name, tmp_path):
  label_sets.make(name, tmp_path)
  source, labels, images = take(name, tmp_path)
  assert convert.find_format('auto', source) == name
  assert labels and images
  same = {'annotations': [], 'images': []}
  assert changes(name, tmp_path, labels, images) == same

  opened = [label_sets.find_labels(tmp_path)]
  if opened[0].is_dir():
    opened = [x for x in opened[0].rglob('*') if x.is_file()]
  for path in [x for x in opened if x.name != 'a.png' or name in _PNGS]:
    content = path.read_bytes()
    path.write_bytes(content + b' ')
    found = changes(name, tmp_path, labels, images)
    assert found['annotations'] == [f'{path} has changed']
    path.write_bytes(content)
  assert changes(name, tmp_path, labels, images) == same

  (photo,) = (tmp_path / 'images').rglob('*.png')
  photo.write_bytes(photo.read_bytes() + b' ')
  found = changes(name, tmp_path, labels, images)
  assert found['images'] == [f'{photo} has changed']


_PNGS = ('voc', 'cityscapes', 'instance_png', 'object_png')


@pytest.mark.parametrize('name', label_sets.MAKERS)
def test_a_new_image_counts_unless_a_json_lists_them(name, tmp_path):
  label_sets.make(name, tmp_path)
  _, labels, images = take(name, tmp_path)
  label_sets.make_image(tmp_path / 'images' / 'b.png')
  found = changes(name, tmp_path, labels, images)['images']
  expected = [] if name in convert.OF_COCO else ['b.png is new']
  assert [os.path.basename(x) for x in found] == expected


def test_files_that_are_gone_are_named(tmp_path):
  label_sets.make('labelme', tmp_path)
  label_sets.make_image(tmp_path / 'images' / 'b.png')
  _, labels, images = take('labelme', tmp_path)
  (tmp_path / 'images' / 'b.png').unlink()
  (tmp_path / 'labels' / 'a.json').rename(tmp_path / 'labels' / 'b.json')
  assert changes('labelme', tmp_path, labels, images) == {
    'annotations': [
      f'{tmp_path}/labels/a.json is gone',
      f'{tmp_path}/labels/b.json is new',
    ],
    'images': [f'{tmp_path}/images/b.png is gone'],
  }


def test_names_that_are_no_unicode_have_a_fingerprint(tmp_path):
  label_sets.make('labelme', tmp_path)
  (tmp_path / 'images' / 'b\udcff.png').touch()
  _, labels, images = take('labelme', tmp_path)
  assert set(images) == {'a.png', 'b\\udcff.png'}
  images = json.loads(json.dumps(images, ensure_ascii=False).encode())
  assert not any(changes('labelme', tmp_path, labels, images).values())


@pytest.mark.parametrize('name', _ABOVE)
def test_names_of_classes_above_the_labels_count(name, tmp_path):
  folder = tmp_path / 'project' / 'set'
  label_sets.make(name, folder)
  _, labels, images = take(name, folder)
  above = tmp_path / 'project' / _ABOVE[name]
  above.write_text('{}')
  found = changes(name, folder, labels, images)['annotations']
  assert [os.path.normpath(x) for x in found] == [f'{above} is new']


def test_both_folders_of_voc_count(tmp_path):
  label_sets.make('voc', tmp_path)
  objects = tmp_path / 'labels' / 'SegmentationObject'
  source = Source(tmp_path / 'images', objects, None, 1)
  labels = fingerprints.of_labels(source, 'voc')
  path = tmp_path / 'labels' / 'SegmentationClass' / 'a.png'
  path.write_bytes(path.read_bytes() + b' ')
  found = fingerprints.changes(source, 'voc', labels, {})['annotations']
  assert len(found) == 1 and 'SegmentationClass/a.png has changed' in found[0]


def test_files_of_the_same_times_are_not_read_again(tmp_path, monkeypatch):
  label_sets.make('coco', tmp_path)
  _, labels, images = take('coco', tmp_path)
  read = []
  digest = hashlib.file_digest

  def watched(file, kind):
    read.append(os.path.basename(file.name))
    return digest(file, kind)

  monkeypatch.setattr(fingerprints.hashlib, 'file_digest', watched)
  assert not any(changes('coco', tmp_path, labels, images).values())
  assert not read
  # A copy with other times is read, and the same.
  path = tmp_path / 'images' / 'a.png'
  shutil.copy(path, tmp_path / 'copy.png')
  (tmp_path / 'copy.png').replace(path)
  assert not any(changes('coco', tmp_path, labels, images).values())
  assert read == ['a.png']


def test_a_change_that_keeps_size_and_time_is_noticed(tmp_path):
  label_sets.make('coco', tmp_path)
  _, labels, images = take('coco', tmp_path)
  path = tmp_path / 'labels.json'
  status, text = path.stat(), path.read_text()
  path.write_text(text.replace('cat', 'cow'))
  os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
  assert path.stat().st_mtime_ns == status.st_mtime_ns
  found = changes('coco', tmp_path, labels, images)
  assert found['annotations'] == [f'{path} has changed']


def test_a_workdir_among_the_data_is_refused(tmp_path):
  label_sets.make('labelme', tmp_path)
  source = Source(tmp_path / 'images', tmp_path / 'labels', None, 1)
  fingerprints.check_outside(source, 'labelme', tmp_path / 'run')
  for name in ('images', 'labels'):
    with pytest.raises(UserError) as error:
      fingerprints.check_outside(source, 'labelme', tmp_path / name / 'run')
    assert error.value.argument == '--workdir'
    assert error.value.path == str(tmp_path / name)
  # A JSON lists its images: nothing is searched.
  label_sets.make('coco', tmp_path / 'other')
  root = tmp_path / 'other'
  listed = Source(root, root / 'labels.json', None, 1)
  fingerprints.check_outside(listed, 'coco', root / 'run')
