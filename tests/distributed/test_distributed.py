"""Several processes under mpirun compute what one computes, and end as one."""

import functools
import json
import shutil
import sys

import jax
import labelme_set
import numpy as np
import pytest
import quick
import tiny_run
from job_process import command, execute

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.checkpoints import store
from maskrcnn_jax.input_pipeline import batches as input_batches
from maskrcnn_jax.training import loop

# More processes than cores, and each may take any of them.
MPIRUN = ('mpirun', '--allow-run-as-root', '--oversubscribe', '--bind-to')
MPIRUN += ('none', '--np', '2')
# Relative difference of losses. In the first step one and two processes only
# add in another order; rounding grows from there (measured: 2e-7 and 2e-6).
FIRST_STEP = 1e-5
LATER_STEPS = 1e-4

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not shutil.which('mpirun'), reason='needs Open MPI'),
]


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """Path of a config for a tiny data set."""
  folder = tmp_path_factory.mktemp('config')
  config = tiny_run.make_config(*tiny_run.write_dataset(folder))
  config.input.batch_size = 4
  config.evaluation.batch_size = 2
  config.evaluation.every_steps = 3
  config.runtime = {
    'backend': 'cpu',
    'compilation_cache': str(folder / 'programs'),
  }
  return tiny_run.write_config(config, folder / 'tiny.py')


@pytest.fixture(scope='module')
def one(config, tmp_path_factory):
  """Workdir of a run of four steps in this process."""
  workdir = tmp_path_factory.mktemp('one')
  with quick.compilation():
    loop.train_and_evaluate(config_lib.load_config(str(config)), workdir)
  return workdir


@pytest.fixture(scope='module')
def two(config, tmp_path_factory):
  """Workdir and output of the same run in two processes."""
  workdir = tmp_path_factory.mktemp('two')
  done = execute([*MPIRUN, *command('train_and_eval', config, workdir)])
  assert done.returncode == 0, done.stderr
  return workdir, done


def test_losses_are_those_of_one_process(one, two):
  expected, actual = (
    tiny_run.lines(w, 'train/total_loss') for w in (one, two[0])
  )
  assert sorted(actual) == sorted(expected) == [1, 2, 3, 4]
  for step, line in expected.items():
    assert line['train/mask'] > 0
    np.testing.assert_allclose(
      [actual[step][name] for name in line],
      [*line.values()],
      rtol=FIRST_STEP if step == 1 else LATER_STEPS,
      err_msg=f'step {step}: {[*line]}',
    )


def test_results_are_those_of_one_process(one, two):
  expected, actual = (tiny_run.lines(w, 'eval/AP') for w in (one, two[0]))
  assert sorted(actual) == sorted(expected) == [3, 4]
  assert actual == expected
  # The files list the images of one process after those of the other.
  for step in expected:
    pair = [
      sorted(
        json.loads((w / f'eval/detections-{step}.json').read_text()),
        key=lambda result: result['image_id'],
      )
      for w in (one, two[0])
    ]
    assert len(pair[0]) == len(pair[1]) == 12
    for single, several in zip(*pair):
      assert single['image_id'] == several['image_id']
      assert single['category_id'] == several['category_id']
      np.testing.assert_allclose(
        several['score'], single['score'], rtol=LATER_STEPS
      )
      np.testing.assert_allclose(several['bbox'], single['bbox'], atol=0.01)


def test_process_0_alone_prints_and_writes(two):
  workdir, done = two
  for text in ('compiling the step', 'step 1/4', 'step 3: 3 of 3 images'):
    assert done.stderr.count(text) == 1, done.stderr
  assert done.stdout.count('ARmax100') == 2, done.stdout
  names = {path.name for path in workdir.iterdir()}
  events = {name for name in names if name.startswith('events.out.')}
  assert names - events == {
    *('checkpoints', 'config.json', 'curves.png', 'eval'),
    *('metrics.jsonl', 'pictures', 'training_records.json'),
  }
  assert len((workdir / 'metrics.jsonl').read_text().splitlines()) == 6
  steps = sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir())
  # Every second one, and the one that was evaluated.
  assert steps == [2, 3, 4]
  assert store.read_position(workdir) == {'examples': 16, 'salt': 0}


def test_one_process_reads_the_checkpoint_of_two(one, two):
  states = [store.restore(workdir)[0] for workdir in (one, two[0])]
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
  jax.tree.map(close, *states)


@pytest.mark.long
def test_resume_gives_the_same_losses_bit_by_bit(config, two, tmp_path):
  for num_steps in (2, 4):
    flag = f'--config.training.num_steps={num_steps}'
    done = execute([*MPIRUN, *command('train', config, tmp_path, flag)])
    assert done.returncode == 0, done.stderr
  assert done.stderr.count('continuing from step 2') == 1
  key = 'train/total_loss'
  assert tiny_run.lines(tmp_path, key) == tiny_run.lines(two[0], key)


@pytest.fixture(scope='module')
def joined(tmp_path_factory):
  """Folder that two processes wrote to, without a model, and their output."""
  folder = tmp_path_factory.mktemp('joined')
  pattern, _ = tiny_run.write_dataset(folder)
  paths = labelme_set.write(folder / 'data', 5)
  program = [sys.executable, '-c', JOINED, folder, pattern, *paths]
  done = execute([*MPIRUN, *map(str, program)])
  assert done.returncode == 0, done.stderr
  return folder, pattern, done.stdout


JOINED = """
import json, pathlib, sys
from maskrcnn_jax.distributed import processes
processes.start_distributed()
import jax, tiny_run
import numpy as np
from maskrcnn_jax.datasets import record_index
from maskrcnn_jax.datasets.run_data import RunData
from maskrcnn_jax.distributed import arrays
from maskrcnn_jax.distributed import mesh as mesh_lib
from maskrcnn_jax.input_pipeline import batches
from maskrcnn_jax.training import own_records
folder, pattern, *paths = sys.argv[1:]
mesh = mesh_lib.make_mesh()
total = jax.jit(
  lambda x: x.astype('int32').sum((1, 2, 3)),
  out_shardings=mesh_lib.replicated(mesh),
)
found = batches.train_batches(
  pattern,
  ((64, 64),),
  host_index=jax.process_index(),
  host_count=jax.process_count(),
)
ids, sums = [], []
for _, batch in zip(range(6), found):
  ids.append(batch['image_ids'].tolist())
  images = arrays.put_batch(batch, mesh)['images']
  sums.append(np.asarray(total(images)).tolist())
config = tiny_run.make_config('none', 'none')
own_records.complete(config, f'{folder}/run', RunData(*paths, num_workers=1))
patterns = config.input.file_pattern, config.evaluation.file_pattern
counts = [len(record_index.index_records(x)) for x in patterns]
path = pathlib.Path(f'{folder}/of-{jax.process_index()}.json')
path.write_text(json.dumps({'ids': ids, 'sums': sums, 'counts': counts}))
"""


def read_parts(folder):
  """Of each process, in order."""
  return [json.loads(p.read_text()) for p in sorted(folder.glob('of-*.json'))]


def test_the_global_batch_is_that_of_one_process(joined):
  folder, pattern, _ = joined
  parts = read_parts(folder)
  assert len(parts) == 2
  batches = input_batches.train_batches(pattern, ((64, 64),))
  whole = [batch for batch, _ in zip(batches, range(6))]
  ids = np.concatenate([part['ids'] for part in parts], axis=1)
  np.testing.assert_array_equal(ids, [batch['image_ids'] for batch in whole])
  sums = [batch['images'].sum((1, 2, 3), np.int32) for batch in whole]
  for part in parts:  # The global array has the rows in the same order.
    np.testing.assert_array_equal(part['sums'], sums)


def test_one_process_prepares_the_records(joined):
  folder, _, shown = joined
  assert shown.count('read as labelme') == 2  # To train, to validate.
  assert [part['counts'] for part in read_parts(folder)] == [[4, 1], [4, 1]]


def test_an_error_in_the_labels_is_printed_once(config, tmp_path):
  photos, labels = labelme_set.write(tmp_path / 'data', 5)
  (labels / '03.json').write_text('{')
  flags = (f'--images={photos}', f'--annotations={labels}', '--num_workers=1')
  workdir = tmp_path / 'run'
  done = execute([*MPIRUN, *command('train', config, workdir, *flags)])
  assert done.returncode == 2
  assert done.stderr.count('03.json is not a JSON file') == 1, done.stderr
  assert not workdir.exists()


def test_processes_bound_to_cores_find_a_finished_run(config, two):
  """The form of the reference, without its number of cores a process."""
  bound = ('mpirun', '--allow-run-as-root', '--bind-to', 'core', '--np', '2')
  if execute([*bound, 'true']).returncode:
    pytest.skip('mpirun finds fewer than two cores')
  done = execute([*bound, *command('train', config, two[0])])
  assert done.returncode == 0, done.stderr
  assert done.stdout.count('4 of 4 steps') == 1


def test_an_error_in_all_processes_is_printed_once(config, two):
  flag = '--config.model.backbone.width=8'
  done = execute([*MPIRUN, *command('train', config, two[0], flag)])
  assert done.returncode == 2
  assert done.stderr.count('model.backbone.width') == 1, done.stderr
  assert 'Traceback' not in done.stderr


def test_an_error_in_one_process_ends_the_others(config, tmp_path):
  # The first batch has both classes, but not in the rows of each process.
  flags = ('--config.model.num_classes=2', '--config.input.batch_size=2')
  done = execute([*MPIRUN, *command('train', config, tmp_path, *flags)])
  assert done.returncode == 2
  assert done.stderr.count('Image 8 has class 2') == 1, done.stderr
  assert 'Traceback' not in done.stderr


def test_processes_must_share_the_workdir(config, two, tmp_path):
  own, other = (command('train', config, w) for w in (two[0], tmp_path))
  # One process with each workdir.
  done = execute([*MPIRUN[:-1], '1', *own, ':', '--np', '1', *other])
  assert done.returncode == 2
  assert done.stderr.count(f': {two[0]} has ') == 1, done.stderr
