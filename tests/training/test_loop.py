"""Training loop: a run end to end, resume, bad steps, SIGTERM, bad options."""

import json
import pathlib
import signal
import sys

import jax
import job_process
import numpy as np
import pytest
import tiny_run
from PIL import Image

from maskrcnn_jax.checkpoints import store
from maskrcnn_jax.distributed.termination import Stopped
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import scores, scoring
from maskrcnn_jax.input_pipeline import batches as input_batches
from maskrcnn_jax.training import evaluator, loop, monitor

METRIC = 'eval/mask_AP'

pytestmark = pytest.mark.usefixtures('fast_compilation')


def with_steps(config, num_steps):
  return tiny_run.changed(config, {'training.num_steps': num_steps})


@pytest.fixture(scope='module')
def run(tmp_path_factory, dataset, fast_compilation):
  """A run of four steps without interruption, evaluated on the way."""
  workdir = tmp_path_factory.mktemp('run')
  config = tiny_run.make_config(*dataset)
  config.evaluation.every_steps = 3
  return workdir, loop.train_and_evaluate(config, workdir)


def test_a_run_reports_every_term(run):
  workdir, _ = run
  reported = tiny_run.lines(workdir, 'train/total_loss')
  assert sorted(reported) == [1, 2, 3, 4]
  names = (*scores.TERMS, 'l2_loss', 'learning_rate', 'gradient_norm')
  for line in reported.values():
    assert all(np.isfinite(line[f'train/{name}']) for name in names)
    total = sum(line[f'train/{name}'] for name in (*scores.TERMS, 'l2_loss'))
    np.testing.assert_allclose(line['train/total_loss'], total, rtol=1e-5)
  first = (workdir / 'metrics.jsonl').read_text().splitlines()[0]
  assert json.loads(first)['train/images_per_second'] > 0


def test_a_run_is_evaluated_on_the_way_and_at_the_end(run):
  workdir, values = run
  reported = tiny_run.lines(workdir, 'eval/AP')
  assert sorted(reported) == [3, 4]
  assert len(values) == 24
  assert values['eval/mask_AP'] == reported[4]['eval/mask_AP']
  results = json.loads((workdir / 'eval/detections-4.json').read_text())
  # The image without objects is in the last batch, which is not full.
  assert {r['image_id'] for r in results} == {7, 8, 9}
  assert all('counts' in r['segmentation'] for r in results)


def test_a_run_draws_the_images_as_fed(run):
  workdir, _ = run
  names = sorted(p.name for p in (workdir / 'pictures').iterdir())
  assert names == [
    f'step-{step}-image-{image}.png' for step in (3, 4) for image in (7, 8)
  ]
  with Image.open(workdir / 'pictures' / names[0]) as picture:
    assert picture.size == (512, 384)
  events = b''.join(p.read_bytes() for p in workdir.glob('events.out.*'))
  assert b'eval/image-7' in events
  assert b'eval/mask_AP' in events


def test_a_run_leaves_its_checkpoints_and_config(run, config):
  workdir, _ = run
  # Every second one, and the one that was evaluated.
  assert tiny_run.saved_steps(workdir) == [2, 3, 4]
  position = store.read_position(workdir)
  assert position == {'examples': 4 * config.input.batch_size, 'salt': 0}
  assert store.read_classes(workdir) == {1: 'disc', 2: 'star'}
  saved = json.loads((workdir / 'config.json').read_text())
  assert saved['model']['backbone']['width'] == 4


def test_resume_gives_the_same_losses_bit_by_bit(run, config, tmp_path):
  loop.train(with_steps(config, 2), tmp_path)
  loop.train(config, tmp_path)
  key = 'train/total_loss'
  assert tiny_run.lines(tmp_path, key) == tiny_run.lines(run[0], key)
  tiny_run.assert_same_end(run[0], tmp_path)


def test_a_finished_run_is_not_trained_again(run, config, capsys):
  workdir, _ = run
  before = sorted(p for p in workdir.rglob('*'))
  loop.train(config, workdir)
  assert '4 of 4 steps' in capsys.readouterr().out
  assert sorted(p for p in workdir.rglob('*')) == before


def test_evaluation_of_a_given_step_prints_a_table(run, config, capsys):
  workdir, _ = run
  config.evaluation.max_images = 1
  config.training.pictures = 0
  values = loop.evaluate(config, workdir, step=2)
  assert len(values) == 24
  results = json.loads((workdir / 'eval/detections-2.json').read_text())
  assert {r['image_id'] for r in results} == {7}
  assert 'mask' in capsys.readouterr().out


@pytest.mark.parametrize('scorer', scoring.SCORERS)
def test_evaluation_in_processes_finds_the_same(run, config, scorer, capsys):
  pytest.importorskip(scorer)
  workdir, values = run
  path = workdir / 'eval/detections-4.json'
  expected = path.read_text()
  path.unlink()
  config.evaluation.num_processes = 2
  config.evaluation.scorer = scorer
  config.evaluation.report_every_batches = 1
  assert loop.evaluate(config, workdir, step=4) == values
  assert path.read_text() == expected
  printed = capsys.readouterr()
  assert 'after 2 batches (3 images)' in printed.out + printed.err


def test_evaluation_needs_a_checkpoint(config, tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    loop.evaluate(config, tmp_path)
  assert str(tmp_path) in str(error.value)
  assert not any(tmp_path.iterdir())


def test_a_workdir_of_another_model_is_left_alone(run, config):
  workdir, _ = run
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
  config.model.backbone.width = 8
  for function in (loop.train, loop.evaluate, loop.train_and_evaluate):
    with pytest.raises(store.WorkdirError, match=r'width: saved 4.*8'):
      function(with_steps(config, 9), workdir)
  assert {p: p.stat().st_mtime_ns for p in workdir.rglob('*')} == before


def poison(monkeypatch, is_bad):
  """Puts NaN into the images of batches; returns the salts of the inputs.

  Args:
    monkeypatch: of the test.
    is_bad: whether a batch is poisoned, by its position (batches before it) and
      the salt.
  """
  train_batches, salts = input_batches.train_batches, []

  def poisoned(**kwargs):
    salts.append(kwargs['salt'])
    batches = train_batches(**kwargs)
    advance = type(batches).__next__

    class Poisoned(type(batches)):
      def __next__(self):
        before = self.position
        batch = advance(self)
        size = len(batch['valid'])
        if is_bad(before['examples'] // size, before['salt']):
          images, ids = batch['images'] * np.nan, 1000 + np.arange(size)
          batch = batch | {'images': images, 'image_ids': ids}
        return batch

    batches.__class__ = Poisoned
    return batches

  monkeypatch.setattr(input_batches, 'train_batches', poisoned)
  return salts


def assert_saved_is_finite(workdir):
  variables, _ = store.restore(workdir)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(variables))


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_skipped_and_named(
  config, tmp_path, monkeypatch, capsys
):
  poison(monkeypatch, lambda step, salt: step == 2)
  loop.train(config, tmp_path)
  (line,) = (
    line
    for line in capsys.readouterr().err.splitlines()
    if line.startswith('WARNING: step')
  )
  ids = [1000 + i for i in range(config.input.batch_size)]
  assert line.startswith('WARNING: step 3: ')
  assert 'rpn_box is nan' in line
  assert str(ids) in line and '1 in a row' in line
  assert line.endswith(' images[0]')
  reported = tiny_run.lines(tmp_path, 'train/total_loss')
  # The step counts, though its metrics are of no use.
  assert sorted(reported) == [1, 2, 4]
  assert reported[4]['train/skipped_steps'] == 1
  assert store.latest_step(tmp_path) == 4
  assert_saved_is_finite(tmp_path)


@pytest.fixture
def located(monkeypatch):
  """The search for the first bad tensor, which compiles, finds it at once."""
  monkeypatch.setattr(monitor, 'find_nonfinite', lambda *_, **__: 'located')


@pytest.mark.slow
def test_bad_steps_in_a_row_rewind_to_the_last_checkpoint_and_other_data(
  config, tmp_path, monkeypatch, capsys, located
):
  salts = poison(monkeypatch, lambda step, salt: salt == 0 and step >= 3)
  config.training.max_bad_steps = 3
  loop.train(with_steps(config, 8), tmp_path)
  error = capsys.readouterr().err
  assert error.count('WARNING: step ') == 3 and error.count('located') == 1
  # Checkpoints are written every two steps, but not between bad steps.
  assert 'to step 2' in error and '(salt 1)' in error
  assert salts == [0, 1]
  assert store.latest_step(tmp_path) == 8
  assert store.read_position(tmp_path)['salt'] == 1
  assert_saved_is_finite(tmp_path)


@pytest.mark.slow
def test_what_goes_wrong_with_other_data_too_stops_the_run(
  config, tmp_path, monkeypatch, capsys, located
):
  size = config.input.batch_size
  poison(monkeypatch, lambda step, salt: step >= 2)
  config.training.max_bad_steps = 2
  config.training.log_every_steps = 100
  with pytest.raises(monitor.NonFiniteError) as error:
    loop.train(with_steps(config, 9), tmp_path)
  assert error.value.item == 2
  message = str(error.value)
  assert 'step 3: ' in message and 'step 4: ' in message
  assert str([1000 + i for i in range(size)]) in message
  assert 'FAILURE, NonFiniteError' in capsys.readouterr().out
  assert store.latest_step(tmp_path) == 2
  assert_saved_is_finite(tmp_path)
  assert store.read_position(tmp_path)['examples'] == 2 * size


@pytest.mark.slow
def test_without_a_checkpoint_a_run_starts_anew_with_other_data(
  config, tmp_path, monkeypatch, capsys, located
):
  poison(monkeypatch, lambda step, salt: salt == 0)
  config.training.max_bad_steps = 1
  loop.train(with_steps(config, 2), tmp_path)
  assert 'to step 0' in capsys.readouterr().err
  position = store.read_position(tmp_path)
  assert position == {'examples': 2 * config.input.batch_size, 'salt': 1}


@pytest.mark.slow
def test_nothing_is_saved_between_bad_steps(
  config, tmp_path, monkeypatch, capsys, located
):
  """So the last good checkpoint stays, and a run does not end in between."""
  poison(monkeypatch, lambda step, salt: salt == 0 and step >= 2)
  config.training.update(
    checkpoint_every_steps=1, keep_checkpoints=1, max_bad_steps=9
  )
  saved, save = [], store.CheckpointWriter.save
  monkeypatch.setattr(
    store.CheckpointWriter,
    'save',
    lambda self, step, *rest: saved.append(step) or save(self, step, *rest),
  )
  loop.train(config, tmp_path)
  # Steps 3 and 4, the end, were bad: it went back to step 2.
  assert saved == [1, 2, 3, 4]
  assert 'to step 2' in capsys.readouterr().err
  assert store.latest_step(tmp_path) == 4
  assert store.read_position(tmp_path)['salt'] == 1


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_termination_saves_and_the_same_command_goes_on(
  run, config, tmp_path, monkeypatch, capfd, number
):
  def terminate(step, salt):
    if step == 2:
      signal.raise_signal(number)

  before = [signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGINT)]
  poison(monkeypatch, terminate)
  config.training.checkpoint_every_steps = 100
  with pytest.raises(Stopped) as stopped:
    loop.train(config, tmp_path)
  assert stopped.value.code == 0
  assert stopped.value.signal_name == number.name
  handlers = [signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGINT)]
  assert handlers == before
  assert f'STOPPED by {number.name}' in capfd.readouterr().out
  assert store.latest_step(tmp_path) == 3
  monkeypatch.undo()
  loop.train(config, tmp_path)
  tiny_run.assert_same_end(run[0], tmp_path)


@pytest.mark.slow
def test_termination_during_an_evaluation_ends_at_once(
  config, tmp_path, monkeypatch
):
  config.evaluation.every_steps = 3
  config.training.checkpoint_every_steps = 100

  def terminated(self, step, variables, writer, heartbeat):
    signal.raise_signal(signal.SIGTERM)
    raise AssertionError('It went on.')

  monkeypatch.setattr(evaluator.Evaluator, '__call__', terminated)
  with pytest.raises(Stopped):
    loop.train_and_evaluate(config, tmp_path)
  assert store.latest_step(tmp_path) == 3  # What is evaluated is saved.


TWICE = """
import os, signal, sys
from maskrcnn_jax.distributed import termination
number = getattr(signal, sys.argv[1])
with termination.Termination() as caught, termination.deferred_signals():
  signal.raise_signal(number)
  assert caught.requested(1)
  print('once', flush=True)
  signal.raise_signal(number)
print('twice', flush=True)
"""


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT'])
def test_a_second_signal_ends_at_once_also_while_saving(name):
  done = job_process.execute([sys.executable, '-c', TWICE, name])
  assert done.returncode == 128 + getattr(signal, name)
  assert done.stdout == 'once\n'
  assert name in done.stderr


@pytest.mark.slow
def test_a_run_compiles_once_per_canvas(config, tmp_path, capsys):
  config.input.canvases = ((64, 32), (32, 64))
  config.training.log_every_steps = 100
  loop.train(with_steps(config, 6), tmp_path)
  errors = capsys.readouterr().err
  assert errors.count(' 64x32') == errors.count(' 32x64') == 1


@pytest.mark.parametrize(
  'changes, argument',
  [
    ({'input.batch_size': 0}, None),
    ({'evaluation.batch_size': 0}, None),
    ({'evaluation.num_processes': -1}, None),
    ({'evaluation.max_images': 0}, None),
    ({'evaluation.max_detections': 10}, None),
    ({'evaluation.scorer': 'coco'}, None),
    ({'training.num_steps': 0}, None),
    ({'training.profile': (2,)}, None),
    ({'model.num_classes': 2}, None),
    ({'training.patience': 0}, None),
    ({'training.keep_best': 'eval/AP60'}, None),
    # Contradictions.
    ({'training.patience': 2}, 'training.keep_best'),
    (
      {'training.keep_best': METRIC, 'training.patience': 2},
      'evaluation.every_steps',
    ),
    (
      {'training.keep_best': scores.LOSS, 'evaluation.every_steps': 2},
      'evaluation.losses',
    ),
    # Misspelt fields.
    ({'training.num_step': 2}, 'training.num_step'),
    ({'training.keep_checkpoint': 2}, 'training.keep_checkpoint'),
  ],
)
def test_a_bad_option_is_found_before_the_first_step(
  config, tmp_path, changes, argument
):
  with pytest.raises(UserError) as error:
    loop.train_and_evaluate(tiny_run.changed(config, changes), tmp_path / 'run')
  if argument is None:
    ((argument, value),) = changes.items()
    assert error.value.given == value
  assert error.value.argument == argument
  assert argument != 'training.num_step' or "'num_steps'" in str(error.value)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'field, value',
  [
    ('input.file_pattern', 'none/*.tfrecord'),
    ('evaluation.file_pattern', 'none/*.tfrecord'),
    ('evaluation.annotations_file', 'none.json'),
  ],
)
def test_a_bad_input_is_named_before_the_first_step(
  config, tmp_path, field, value
):
  with pytest.raises((UserError, FileNotFoundError), match=value[:5]):
    loop.train_and_evaluate(
      tiny_run.changed(config, {field: value}), tmp_path / 'run'
    )
  assert not (tmp_path / 'run').exists()


def test_images_without_annotations_are_named(config, tmp_path):
  truth = json.loads(
    pathlib.Path(config.evaluation.annotations_file).read_text()
  )
  truth['images'] = truth['images'][:1]
  path = tmp_path / 'truth.json'
  path.write_text(json.dumps(truth))
  config.evaluation.annotations_file = str(path)
  with pytest.raises(UserError) as error:
    loop.train_and_evaluate(config, tmp_path / 'run')
  assert error.value.path == str(path)
  assert error.value.item == 8
  assert '[8, 9]' in str(error.value)


def test_a_class_that_the_model_lacks_names_the_image(config, tmp_path):
  config.model.num_classes = 2
  with pytest.raises(UserError) as error:
    loop.train(config, tmp_path)
  assert error.value.argument == 'model.num_classes'
  assert error.value.item == 8
  assert (error.value.given, error.value.wanted) == (2, 3)
