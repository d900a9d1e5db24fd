"""Checks of a data set against a config: classes, limits, records."""

import data_sets
import pytest

from maskrcnn_jax.datasets import prepare
from maskrcnn_jax.datasets.doctor import check

CONFIG = {
  'model': {'num_classes': 3, 'detections': {'max_detections': 100}},
  'input': {'max_instances': 100, 'file_pattern': ''},
  'evaluation': {'file_pattern': ''},
}


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
  data = data_sets.draw_set(tmp_path_factory.mktemp('set'))
  data.write()
  for name in ('train', 'val'):
    prepare.prepare(*data.paths(name), data.folder / f'{name}.tfrecord')
  return data


def _check(data, with_val=True, **changes):
  """The first of every kind that is found only with the config."""
  config = {
    section: values | changes.get(section, {})
    for section, values in CONFIG.items()
  }
  val = data.paths('val') if with_val else None
  plain = check.check(data.paths('train'), val, num_workers=1).findings
  found = check.check(data.paths('train'), val, config, num_workers=1).findings
  new = [each for each in found if each not in plain]
  return {each.kind: each for each in reversed(new)}


def test_a_config_that_fits(drawn):
  pattern = {
    name: str(drawn.folder / f'{name}-*.tfrecord') for name in ('train', 'val')
  }
  assert not _check(
    drawn,
    input={'file_pattern': pattern['train']},
    evaluation={'file_pattern': pattern['val']},
  )


def test_classes_that_the_model_lacks(drawn):
  found = _check(drawn, model={'num_classes': 2})['class_beyond_model']
  assert found.severity == 'error'
  assert "class 2 ('dog', objects: 3) " in found.message
  assert 'Set --config.model.num_classes=3.' in found.message
  found = _check(drawn, model={'num_classes': 91})['unused_classes']
  assert found.severity == 'note' and '88 classes' in found.message
  assert not _check(drawn, model={'num_classes': None})


def test_crowded_images(drawn):
  found = _check(drawn, input={'max_instances': 2})['more_than_max_instances']
  assert found.file.endswith('train/1.jpg') and found.image_id == 1
  assert '3 objects, input.max_instances is 2' in found.message
  assert '--config.input.max_instances=3' in found.message
  found = _check(drawn, model={'detections': {'max_detections': 2}})
  found = found['more_than_max_detections']
  assert found.file.endswith('val/101.jpg')
  assert '--config.model.detections.max_detections=3' in found.message


def test_records_of_other_images(drawn):
  # The splits are exchanged.
  train, val = (
    {'file_pattern': str(drawn.folder / f'{name}-*.tfrecord')}
    for name in ('train', 'val')
  )
  found = _check(drawn, input=val, evaluation=train)
  finding = found['record_without_image']
  assert finding.severity == 'error'  # The evaluation would refuse them.
  assert finding.file == train['file_pattern']
  assert '3 images of evaluation.file_pattern' in finding.message
  assert '(ids 1, 2, 3)' in finding.message
  assert found['image_without_record'].severity == 'warning'


def test_records_that_are_not_made_yet(drawn):
  found = _check(drawn, with_val=False, input={'file_pattern': 'none*'})
  assert [*found] == ['no_records']
  assert 'maskrcnn-jax prepare' in found['no_records'].message
