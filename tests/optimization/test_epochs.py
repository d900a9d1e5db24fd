"""Lengths in epochs: the steps that they are with three records."""

import pytest
import tiny_run

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.optimization import epochs


@pytest.fixture(name='paths', scope='module')
def fixture_paths(tmp_path_factory):
  return tiny_run.write_dataset(tmp_path_factory.mktemp('dataset'))


@pytest.fixture(name='config')
def fixture_config(paths):
  return tiny_run.make_config(*paths)


@pytest.mark.parametrize(
  'fields, num_steps, every_steps',
  [
    # Epochs of 1.5 steps.
    ({'training.num_epochs': 4.0}, 6, 0),
    ({'training.num_epochs': 4, 'evaluation.every_epochs': 2.0}, 6, 3),
    ({'evaluation.every_epochs': 0.1}, 4, 1),
    ({'training.num_epochs': 4.0, 'input.batch_size': 3}, 4, 0),
  ],
)
def test_steps_of_epochs(config, fields, num_steps, every_steps):
  config.input.batch_size = 2
  config = tiny_run.changed(config, fields)
  config.lock()
  found = epochs.with_steps(config)
  assert found.training.num_steps == num_steps
  assert found.evaluation.get('every_steps', 0) == every_steps
  assert config.training.num_steps == 4  # Of the caller.


def test_a_config_in_steps_stays_itself(config):
  config.input.file_pattern = 'nowhere'
  assert epochs.with_steps(config) is config
  fields = {'training.num_epochs': None, 'evaluation.every_epochs': None}
  config = tiny_run.changed(config, fields)
  assert epochs.with_steps(config) is config


@pytest.mark.parametrize(
  'name', ['training.num_epochs', 'evaluation.every_epochs']
)
@pytest.mark.parametrize('given', [0, -1.0, float('nan')])
def test_epochs_are_above_0(config, name, given):
  with pytest.raises(UserError) as error:
    epochs.with_steps(tiny_run.changed(config, {name: given}))
  assert error.value.argument == name
