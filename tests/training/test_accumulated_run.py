"""Runs with gradient accumulation."""

import shutil

import pytest
import tiny_run

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.training import loop


class Stopped(Exception):
  """The step that a run was about to compile."""


def stop(*step):
  raise Stopped(*step)


@pytest.mark.long
@pytest.mark.slow
def test_a_run_resumes_bit_by_bit_and_with_other_parts(
  config, fast_compilation, tmp_path, monkeypatch
):
  """A checkpoint lies between updates, never within an accumulation."""
  fields = {
    'input.batch_size': 4,
    'optimizer.accumulate_steps': 2,
    # Its state is saved too, and the schedule has a length of its own.
    'optimizer.kind': 'adamw',
    'optimizer.schedule': 'cosine',
    'optimizer.num_steps': 4,
  }
  config = tiny_run.changed(config, fields)
  loop.train(config, tmp_path / 'whole')
  two = tiny_run.changed(config, {'training.num_steps': 2})
  loop.train(two, tmp_path / 'resumed')
  shutil.copytree(tmp_path / 'resumed', tmp_path / 'other')
  loop.train(config, tmp_path / 'resumed')
  tiny_run.assert_same_end(tmp_path / 'whole', tmp_path / 'resumed')
  other = tiny_run.changed(config, {'optimizer.accumulate_steps': 1})
  monkeypatch.setattr(loop, '_compile', stop)
  with pytest.raises(Stopped) as stopped:
    loop.train(other, tmp_path / 'other')
  _, optimizer, _, state, *_ = stopped.value.args
  assert optimizer.options.accumulate_steps == 1
  assert state.step == 2


def test_a_run_refuses_parts_that_devices_cannot_share(config, tmp_path):
  fields = {'input.batch_size': 4, 'optimizer.accumulate_steps': 3}
  with pytest.raises(UserError) as error:
    loop.train(tiny_run.changed(config, fields), tmp_path)
  assert error.value.argument == 'input.batch_size'
  assert not list(tmp_path.iterdir())
