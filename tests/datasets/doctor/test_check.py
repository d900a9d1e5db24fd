"""Data sets with one defect each: the finding names it and its place."""

import dataclasses
import pathlib

import data_defects
import data_sets
import pytest

from maskrcnn_jax.datasets.doctor import check

# Findings that may follow from a defect.
_CONSEQUENCES = {
  'class_not_in_val',
  'class_only_in_val',
  'class_without_objects',
  'empty_area_range',
  'few_objects',
  'image_without_objects',
}


def test_every_finding_is_in_the_documentation():
  page = pathlib.Path(__file__).parents[3] / 'data' / 'README.md'
  text = page.read_text(encoding='utf-8')
  kinds = {kind for _, kind, *_ in data_defects.DEFECTS} | _CONSEQUENCES
  assert not [kind for kind in kinds if f'`{kind}`' not in text]


@pytest.fixture(scope='module', params=['drawn', 'coco-mini'])
def sound(request, tmp_path_factory):
  """A valid set and its findings."""
  folder = tmp_path_factory.mktemp(request.param)
  make = {'drawn': data_sets.draw_set, 'coco-mini': data_sets.link_coco}
  data = make[request.param](folder)
  data.write()
  return data, _check(data).findings


def _check(data, config=None):
  # A part of COCO has few of its classes.
  return check.check(
    data.paths('train'),
    data.paths('val'),
    config,
    num_workers=1,
    allow_empty_classes=True,
  )


def test_a_sound_set_has_no_error(sound):
  _, findings = sound
  assert not [str(each) for each in findings if each.severity == 'error']


@pytest.mark.parametrize(
  'defect', data_defects.DEFECTS, ids=lambda defect: defect[1]
)
def test_a_defect_is_found(sound, defect, tmp_path):
  whole, known = sound
  data = whole.copy_to(tmp_path / 'set')
  places = _places(data)
  where, kind, change, *more = defect
  value, *others = more or ['']
  change(data)
  data.write()
  report = _check(data)
  # Apart from the folder, the findings of the valid set are expected.
  before = {_without_folder(each, whole.folder) for each in known}
  new = [
    each
    for each in report.findings
    if _without_folder(each, data.folder) not in before
  ]
  (found, *_) = [each for each in new if each.kind == kind]
  severity = 'warning'
  for each, kinds in data_defects.SEVERITIES.items():
    severity = each if kind in kinds.split() else severity
  assert found.severity == severity
  assert value in found.message
  file, image_id, annotation_id = places[where]
  assert found.file == str(file)
  assert found.annotation_id == annotation_id
  if kind != 'unknown_image':  # That names the image which is not there.
    assert found.image_id == image_id
  assert {each.kind for each in new} <= {kind, *_CONSEQUENCES, *others}
  assert report.count('error') == sum(x.severity == 'error' for x in new)
  assert (report.count('error') > 0) == (severity == 'error')


def _places(data):
  """Expected file, image id and annotation id by place."""
  (_, train), (val_images, val) = data.paths('train'), data.paths('val')
  path, image_id = data.image_path, data.image['id']
  first_id = data.val['annotations'][0]['image_id']
  first = next(x for x in data.val['images'] if x['id'] == first_id)
  return {
    'train': (train, None, None),
    'val': (val, None, None),
    'image': (path, image_id, None),
    'image of json': (train, image_id, None),
    'renamed': (train, f'n{image_id}', None),
    'again': (path, image_id, 987654),
    'object': (path, image_id, data.victim['id']),
    'object of json': (train, image_id, data.victim['id']),
    'copy': (path, 987654, None),
    'copied file': (path.with_name('again.jpg'), 987654, None),
    'extra file': (path.with_name('extra.JPG'), None, None),
    'leak': (val_images / 'same.jpg', 987654, None),
    'first of val': (val_images / first['file_name'], first['id'], None),
  }


def _without_folder(finding, folder):
  return dataclasses.replace(
    finding,
    file=finding.file.replace(str(folder), ''),
    message=finding.message.replace(str(folder), ''),
  )


def test_splits_may_share_a_folder_of_images(tmp_path):
  data = data_sets.draw_set(tmp_path)
  for path in (tmp_path / 'val').iterdir():
    path.rename(tmp_path / 'train' / path.name)
  data.write()
  images = tmp_path / 'train'
  both = [(images, tmp_path / f'{name}.json') for name in ('train', 'val')]
  assert 'image_not_listed' not in check.check(*both, num_workers=1).by_kind()
  alone = check.check(both[0], num_workers=1).by_kind()['image_not_listed']
  assert [each.file for each in alone] == [
    str(images / f'{number}.jpg') for number in (101, 102, 103)
  ]


def test_what_coco_counts_is_counted_by_class(tmp_path):
  data = data_sets.draw_set(tmp_path)
  number = iter(range(5000, 6000))
  for class_id in (1, 2):  # Beside 2 and 1 of them that are there.
    data.val['annotations'] += [
      data_sets.rectangle(next(number), 101, class_id, 5, 5, 60)
      for _ in range(98)
    ]
  data.write()
  args = data.paths('train'), data.paths('val')
  kind = 'more_objects_than_counted'
  assert kind not in check.check(*args, num_workers=1).by_kind()
  data.val['annotations'].append(
    data_sets.rectangle(next(number), 101, 1, 5, 5, 60)
  )
  data.write()
  (found,) = check.check(*args, num_workers=1).by_kind()[kind]
  assert "101 objects of class 1 ('cat')" in found.message
  assert '--config.evaluation.max_detections=101' in found.message
  config = {'evaluation': {'max_detections': 101}}
  assert kind not in check.check(*args, config, num_workers=1).by_kind()


@pytest.mark.slow
@pytest.mark.parametrize(
  'folder, images, names, counts, kinds',
  [
    (
      *('coco-mini', '{}2017', 'instances_{}2017'),
      [(90, 850, 13), (60, 555, 11)],
      {'crossing_polygon': 2, 'image_without_objects': 2},
    ),
    *(
      pytest.param(
        *('nuclei-dsb2018', '{}', f'instances_{{}}{form}'),
        [(80, 3294, 0), (20, 728, 0)],
        {'more_objects_than_counted': 2, 'empty_area_range': 1},
        marks=marks,
      )
      # The first set has polygons too.
      for form, marks in (('', pytest.mark.long), ('_rle', ()))
    ),
  ],
)
def test_whole_real_sets_are_sound(folder, images, names, counts, kinds):
  folder = data_sets.real(folder)
  train, val = (
    (
      folder / images.format(split),
      folder / 'annotations' / f'{names.format(split)}.json',
    )
    for split in ('train', 'val')
  )
  report = check.check(train, val)
  found = {kind: len(each) for kind, each in report.by_kind().items()}
  found.pop('few_objects', None)
  assert found == kinds
  assert not report.count('error')
  for split, expected in zip(report.splits, counts):
    crowds = sum(each.is_crowd for each in split.objects)
    numbers = len(split.digests), len(split.objects) - crowds, crowds
    assert numbers == expected
