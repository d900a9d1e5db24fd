"""Checkpoints are restored as they were saved; other models are refused."""

import dataclasses
import json

import jax
import pytest
from tiny_checkpoint import (
  CLASSES,
  POSITION,
  assert_same,
  make_config,
  make_state,
  save,
  save_state,
)

from maskrcnn_jax.checkpoints import store


def test_everything_is_restored(tmp_path):
  save(tmp_path, scale=5.0)
  restored = store.restore_latest(tmp_path, make_state(), make_config())
  assert restored.step == 4
  assert restored.position == POSITION
  assert restored.classes == CLASSES
  assert_same(restored.state, make_state(step=4, scale=5.0))


def test_an_empty_workdir_has_no_checkpoint(tmp_path):
  assert store.latest_step(tmp_path / 'none') is None
  target, config = make_state(), make_config()
  assert store.restore_latest(tmp_path, target, config) is None
  assert not any(tmp_path.iterdir())
  with pytest.raises(FileNotFoundError, match=str(tmp_path)):
    store.restore(tmp_path)


def test_the_last_ones_are_kept(tmp_path):
  save(tmp_path, steps=(1, 2, 3, 4), keep=2)
  assert store.latest_step(tmp_path) == 4
  names = sorted(p.name for p in (tmp_path / 'checkpoints').iterdir())
  assert names == ['3', '4']


def test_a_saved_step_is_not_overwritten(tmp_path):
  save(tmp_path, scale=1.0)
  save(tmp_path, scale=9.0)
  variables, _ = store.restore(tmp_path)
  assert_same(variables['params'], make_state(scale=1.0).params)


def test_an_interrupted_save_is_named_and_removed(tmp_path, caplog):
  save(tmp_path)
  unfinished = tmp_path / 'checkpoints' / '9.orbax-checkpoint-tmp'
  (unfinished / 'state').mkdir(parents=True)
  assert store.latest_step(tmp_path) == 4
  save(tmp_path, steps=(5,))
  (record,) = caplog.records
  assert record.args == (unfinished,)
  assert not unfinished.exists()


def test_a_donated_state_is_saved_as_it_was(tmp_path):
  state = make_state(step=4)
  step = jax.jit(
    lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0
  )
  with store.CheckpointWriter(tmp_path) as writer:
    save_state(writer, 4, state)
    for _ in range(3):
      state = step(state)
  restored = store.restore_latest(tmp_path, make_state(), make_config())
  assert_same(restored.state, make_state(step=4))


def test_the_state_takes_the_shardings_of_the_target(tmp_path):
  save(tmp_path)
  mesh = jax.make_mesh((jax.device_count(),), ('data',))
  sharding = jax.NamedSharding(mesh, jax.P())
  target = jax.device_put(make_state(), sharding)
  restored = store.restore_latest(tmp_path, target, make_config())
  assert all(x.sharding == sharding for x in jax.tree.leaves(restored.state))


@pytest.mark.parametrize('form', ['workdir', 'checkpoint'])
def test_restore_gives_variables_and_config(tmp_path, form):
  save(tmp_path, steps=(2, 4))
  path = tmp_path if form == 'workdir' else tmp_path / 'checkpoints' / '4'
  variables, config = store.restore(path)
  state = make_state()
  wanted = {'params': state.params, 'batch_stats': state.batch_stats}
  assert_same(variables, wanted)
  assert config.model.anchors.aspect_ratios == ((1, 1), (1.4, 0.7))
  hash(config.model.anchors.aspect_ratios)
  assert store.read_classes(path) == CLASSES


def test_restore_of_a_given_step(tmp_path):
  save(tmp_path, steps=(2, 4))
  store.restore(tmp_path, step=2)
  with pytest.raises(FileNotFoundError, match=r'step 3.*\[2, 4\]'):
    store.restore(tmp_path, step=3)


def test_a_model_without_statistics_is_restored(tmp_path):
  state = make_state().replace(batch_stats={})
  with store.CheckpointWriter(tmp_path) as writer:
    save_state(writer, 1, state)
  variables, _ = store.restore(tmp_path)
  assert variables['batch_stats'] == {}


def test_other_tensors_are_named(tmp_path):
  save(tmp_path)
  before = sorted(tmp_path.rglob('*'))
  with pytest.raises(store.WorkdirError) as error:
    store.restore_latest(
      tmp_path, make_state(width=4), make_config(num_steps=20)
    )
  assert error.value.path == str(tmp_path / 'checkpoints' / '4')
  line = 'params/fpn/kernel: saved float32[2, 3], given float32[2, 4]'
  assert line in error.value.given
  assert line in str(error.value)
  assert 'training.num_steps: saved 10, given 20' in str(error.value)
  assert sorted(tmp_path.rglob('*')) == before


def test_missing_tensors_are_named(tmp_path):
  save(tmp_path)
  target = dataclasses.replace(make_state(), opt_state=())
  with pytest.raises(store.WorkdirError) as error:
    store.restore_latest(tmp_path, target, make_config())
  names = [line.partition(':')[0] for line in error.value.given]
  assert names[0].startswith('opt_state/1/trace')


def refused(function, *arguments):
  """The differences of the model for which a function refuses a workdir."""
  with pytest.raises(store.WorkdirError) as error:
    function(*arguments)
  return error.value.given


def test_another_model_section_is_refused(tmp_path):
  save(tmp_path)
  arguments = tmp_path, make_state(), make_config(depth=50)
  assert refused(store.restore_latest, *arguments) == [
    'model.depth: saved 18, given 50'
  ]


def test_a_workdir_is_claimed_once(tmp_path):
  workdir = tmp_path / 'run'
  store.check_workdir(workdir, make_config())
  assert not workdir.exists()
  for _ in range(2):
    store.claim_workdir(workdir, make_config())
  written = (workdir / 'config.json').read_text()
  assert json.loads(written)['training']['num_steps'] == 10
  store.check_workdir(workdir, make_config(num_steps=11))
  assert refused(store.check_workdir, workdir, make_config(depth=50))
  assert [p.name for p in workdir.iterdir()] == ['config.json']
  assert (workdir / 'config.json').read_text() == written


def test_a_longer_run_leaves_the_first_config_alone(tmp_path):
  store.claim_workdir(tmp_path, make_config())
  save(tmp_path)
  store.claim_workdir(tmp_path, make_config(num_steps=99))
  first = json.loads((tmp_path / 'config.json').read_text())
  later = json.loads((tmp_path / 'config-from-step-4.json').read_text())
  assert first['training']['num_steps'] == 10
  assert later['training']['num_steps'] == 99


def test_a_checkpoint_alone_also_claims_the_workdir(tmp_path):
  save(tmp_path)
  store.check_workdir(tmp_path, make_config())
  assert refused(store.check_workdir, tmp_path, make_config(depth=50))
  with pytest.raises(FileNotFoundError, match='step 5'):
    store.check_workdir(tmp_path, make_config(), step=5)


def test_a_run_from_before_a_field_existed_goes_on(tmp_path):
  """A field that only one of the configs has is at its default in the other."""
  old, new = make_config(), make_config()
  new.model.update({'rpn_convs': 1, 'head_norm': {'kind': 'none'}})
  save(tmp_path, config=old)
  store.check_workdir(tmp_path, new)
  restored = store.restore_latest(tmp_path, make_state(), new)
  assert restored.step == 4
  new.model.head_norm.kind = 'group'
  assert refused(store.check_workdir, tmp_path, new) == [
    'model.head_norm.kind: saved none, given group'
  ]
