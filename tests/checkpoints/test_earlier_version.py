"""A run of an earlier version is continued, evaluated and predicted with."""

import json
import logging
import pathlib
import tarfile

import ml_collections
import numpy as np
import pytest
import quick
import tiny_run

from maskrcnn_jax.checkpoints import saved_config, store
from maskrcnn_jax.inference.predictor import Predictor
from maskrcnn_jax.training import loop

# See files/README.md.
ARCHIVE = pathlib.Path(__file__).parent / 'files' / 'run_cb2126d.tar.gz'
# Fields of its model that have another name now.
FORMER = (
  'model.anchors.octaves',
  'model.anchors.aspects',
  'model.rpn_targets.matching.forced',
  'model.sampling.matching.forced',
  'model.sampling.mask_pool_size',
)


@pytest.fixture
def workdir(tmp_path):
  with tarfile.open(ARCHIVE) as archive:
    archive.extractall(tmp_path / 'run', filter='data')
  return tmp_path / 'run'


@pytest.fixture
def messages(caplog):
  """Log lines about renamed fields, as of a new process."""
  saved_config._log_once.cache_clear()
  caplog.set_level(logging.INFO)
  return lambda: [
    former
    for former in FORMER
    for record in caplog.records
    if f'{former},' in record.getMessage()
  ]


def test_a_checkpoint_of_before_is_read_and_its_renames_logged_once(
  workdir, messages
):
  saved = json.loads((workdir / 'config.json').read_text())
  assert saved['model']['anchors']['octaves'] == 1
  for _ in range(2):
    variables, config = store.restore(workdir)
    store.check_workdir(workdir, config)
  assert sorted(messages()) == sorted(FORMER)
  assert store.latest_step(workdir) == 2
  assert store.read_position(workdir) == {'examples': 4, 'salt': 0}
  assert config.model.anchors.scales_per_octave == 1
  assert config.model.anchors.aspect_ratios == ((1, 1), (1.4, 0.7), (0.7, 1.4))
  assert config.model.rpn_targets.matching.low_quality_matches == 'one'
  kernel = variables['params']['backbone']['stem']['conv']['kernel']
  assert kernel.shape == (7, 7, 3, 4)


@pytest.mark.slow
def test_a_run_of_before_goes_on(workdir, tmp_path):
  _, config = store.restore(workdir)
  pattern, annotations_file = tiny_run.write_dataset(tmp_path)
  config.input.file_pattern = config.evaluation.file_pattern = pattern
  config.evaluation.annotations_file = annotations_file
  config.training.num_steps = 4
  config.runtime = ml_collections.ConfigDict({'num_devices': 1})
  with quick.compilation():
    before = loop.evaluate(config, workdir)
    values = loop.train_and_evaluate(config, workdir)
    predict = Predictor(workdir, num_devices=1)
    detections = predict(np.zeros([48, 64, 3], np.uint8))
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  steps = [json.loads(line)['step'] for line in lines if 'train/mask' in line]
  assert steps[-1] == 4
  assert store.latest_step(workdir) == 4
  assert store.read_position(workdir) == {'examples': 8, 'salt': 0}
  assert len(before) == len(values) == 24
  assert detections.boxes.shape[-1] == 4
  # Later checkpoints have the names of now.
  text = (workdir / 'checkpoints/4/config/metadata').read_text()
  assert 'scales_per_octave' in text
  assert 'octaves"' not in text
