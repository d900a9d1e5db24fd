"""Several processes compute what one computes, and end as one.

The slow tests run the command under Open MPI's mpirun, on the CPU.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import quick
import tiny_run

from maskrcnn_jax.checkpoints import store as checkpoint
from maskrcnn_jax.distributed import backends, launcher
from maskrcnn_jax.distributed import processes as runtime

ROOT = pathlib.Path(__file__).parents[2]
# More processes than cores, and each may take any of them.
MPIRUN = ('mpirun', '--allow-run-as-root', '--oversubscribe', '--bind-to')
MPIRUN += ('none', '--np', '2')
LAUNCHER_NAMES = ('OMPI_', 'PMIX_', 'SLURM_', 'JAX_COORDINATOR')
LAUNCHER_NAMES += ('JAX_NUM_PROCESSES', 'JAX_PROCESS_ID', 'JOB_COMPLETION')
# Relative difference of losses. In the first step one and two processes only
# add in another order; rounding grows from there (measured: 2e-7 and 2e-6).
FIRST_STEP = 1e-5
LATER_STEPS = 1e-4

needs_mpirun = pytest.mark.skipif(
  shutil.which('mpirun') is None, reason='mpirun is not on PATH'
)


@pytest.fixture
def no_launcher(monkeypatch):
  """The environment of a process that nobody launched."""
  for name in [*os.environ]:
    if name.startswith(LAUNCHER_NAMES):
      monkeypatch.delenv(name)
  return monkeypatch


def launched(size, rank, **more):
  """What Open MPI sets in every version."""
  return {
    'OMPI_COMM_WORLD_SIZE': str(size),
    'OMPI_COMM_WORLD_LOCAL_SIZE': str(size),
    'OMPI_COMM_WORLD_RANK': str(rank),
    'OMPI_COMM_WORLD_LOCAL_RANK': str(rank),
    **more,
  }


def slurm_step(num_tasks):
  return {
    'SLURM_STEP_NUM_TASKS': str(num_tasks),
    'SLURM_NTASKS': '4',
    'SLURM_PROCID': '1',
    'SLURM_LOCALID': '0',
  }


def numbered(num_processes, **variables):
  """What one sets by hand, or in the template of a pod."""
  variables = {name: str(value) for name, value in variables.items()}
  return {'JAX_NUM_PROCESSES': str(num_processes), **variables}


@pytest.mark.parametrize(
  'variables, expected',
  [
    ({}, None),
    (launched(1, 0), None),
    (launched(2, 1), launcher.Launch('ompi', 2, 1, 1)),
    (
      {**launched(8, 5), 'OMPI_COMM_WORLD_LOCAL_RANK': '1'},
      launcher.Launch('ompi', 8, 5, 1),
    ),
    (slurm_step(1), None),
    (slurm_step(4), launcher.Launch('slurm', 4, 1, 0)),
    # A batch script that did not start a step with srun.
    ({'SLURM_NTASKS': '4', 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0'}, None),
    (numbered(2, JAX_PROCESS_ID=1), launcher.Launch('explicit', 2, 1)),
    # A job all the same, which adds in the order of several processes.
    (numbered(1, JAX_PROCESS_ID=0), launcher.Launch('explicit', 1, 0)),
    (numbered(1, JOB_COMPLETION_INDEX=0), None),
    (numbered(4, JOB_COMPLETION_INDEX=3), launcher.Launch('kubernetes', 4, 3)),
    # An indexed job whose pods have nothing to do with each other.
    ({'JOB_COMPLETION_INDEX': '3'}, None),
    # mpirun in a SLURM job.
    ({**slurm_step(4), **launched(1, 0)}, None),
    ({**slurm_step(4), **launched(2, 0)}, launcher.Launch('ompi', 2, 0, 0)),
  ],
)
def test_a_launch_of_several_processes_is_found(
  variables, expected, no_launcher
):
  for name, value in variables.items():
    no_launcher.setenv(name, value)
  assert launcher.find_launch() == expected


@pytest.mark.parametrize(
  'variables, message',
  [
    (numbered(2, JAX_PROCESS_ID=2), 'PROCESS_ID must be less than .* 2; got 2'),
    (numbered('two', JAX_PROCESS_ID=0), "must be a whole number, got 'two'"),
    (numbered(2), 'nothing says which of them this is: set JAX_PROCESS_ID'),
    (numbered(2, JAX_PROCESS_ID=0), r'set runtime\.coordinator_address'),
  ],
)
def test_half_a_description_of_a_job_is_an_error(
  variables, message, no_launcher
):
  for name, value in variables.items():
    no_launcher.setenv(name, value)
  with pytest.raises(ValueError, match=message):
    runtime.start_distributed()


def test_the_config_describes_a_job_in_full_or_not_at_all(no_launcher):
  with pytest.raises(ValueError, match=r'num_processes is 2, but .*process_id'):
    runtime.start({'num_processes': 2})


def test_a_single_process_starts_and_ends_by_itself(no_launcher):
  assert runtime.start_distributed() == 1
  runtime.end_job('not said', 2)


def test_open_mpi_5_needs_an_address_on_several_machines(no_launcher):
  variables = launched(2, 0, PMIX_SERVER_TMPDIR='/tmp')
  variables['OMPI_COMM_WORLD_LOCAL_SIZE'] = '1'
  for name, value in variables.items():
    no_launcher.setenv(name, value)
  with pytest.raises(ValueError, match=r'set runtime\.coordinator_address'):
    runtime.start_distributed()
  with pytest.raises(ValueError, match=r"must be HOST:PORT, got 'node1'"):
    runtime.start_distributed('node1')


def test_all_processes_must_have_the_backend(no_launcher):
  with pytest.raises(ValueError, match='1 of 2 processes compute together'):
    backends.pick_backend('auto', num_processes=2)


def environment(**variables):
  """Of a new process: the CPU as one device, quick compilation."""
  kept = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith((*LAUNCHER_NAMES, 'XLA_FLAGS'))
  }
  paths = [
    str(ROOT),
    str(ROOT / 'tests/helpers'),
    os.environ.get('PYTHONPATH', ''),
  ]
  return {
    **kept,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': quick.xla_flags(),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
    'TF_CPP_MIN_LOG_LEVEL': '2',
    'PYTHONPATH': os.pathsep.join(filter(None, paths)),
    **variables,
  }


JOIN = """
from maskrcnn_jax.distributed import backends
from maskrcnn_jax.distributed import processes as runtime
number = runtime.start_distributed()
backends.pick_backend('cpu', number)
import jax
print(number, jax.process_index(), jax.device_count(), jax.local_device_count())
"""


def test_processes_of_open_mpi_5_meet_on_one_machine(tmp_path):
  """Its variables, without mpirun: each version names this folder."""
  job = {'PMIX_NAMESPACE': 'prterun-host-12345@1'}
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', JOIN],
      env=environment(
        **launched(2, rank, PMIX_SERVER_TMPDIR=str(tmp_path), **job)
      ),
      stdout=subprocess.PIPE,
      text=True,
    )
    for rank in (1, 0)
  ]
  second, first = [p.communicate(timeout=120)[0] for p in processes]
  assert [p.returncode for p in processes] == [0, 0]
  assert first.split() == ['2', '0', '2', '1']
  assert second == ''  # Process 0 alone prints.
  (told,) = tmp_path.iterdir()
  assert told.name == 'jax-coordinator-prterun-host-12345@1'


FAIL = """
import sys, time
from maskrcnn_jax.distributed import processes as runtime
print(time.time(), flush=True)
runtime.end_job('the cause', 3, expected=sys.argv[1] == 'expected')
"""


@pytest.mark.slow
def test_the_process_that_knows_the_cause_ends_first():
  cases = ((0, 'expected'), (1, 'expected'), (0, 'a bug'))
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', FAIL, kind],
      env=environment(**launched(2, rank)),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for rank, kind in cases
  ]
  seconds = []
  for process in processes:
    start, message = process.communicate(timeout=60)
    seconds.append(time.time() - float(start))
    assert process.returncode == 3
    assert message == 'the cause\n'
  assert seconds[0] < 3 <= seconds[1]
  assert seconds[2] >= 6


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """The file of a config for a tiny data set."""
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


def command(verb, config, workdir, *flags):
  """The arguments that run a verb in one process."""
  program = (sys.executable, '-m', 'maskrcnn_jax', verb)
  return [*program, f'--config={config}', f'--workdir={workdir}', *flags]


def execute(arguments, timeout=600):
  """A process that ended; its output is text."""
  return subprocess.run(
    arguments,
    env=environment(),
    capture_output=True,
    text=True,
    check=False,
    timeout=timeout,
  )


@pytest.fixture(scope='module')
def one(config, tmp_path_factory):
  """Workdir and output of a run of four steps in one process."""
  workdir = tmp_path_factory.mktemp('one')
  done = execute(command('train_and_eval', config, workdir))
  assert done.returncode == 0, done.stderr
  return workdir, done


@pytest.fixture(scope='module')
def two(config, tmp_path_factory):
  """The same in two processes."""
  workdir = tmp_path_factory.mktemp('two')
  done = execute([*MPIRUN, *command('train_and_eval', config, workdir)])
  assert done.returncode == 0, done.stderr
  return workdir, done


def lines(workdir, key):
  """step -> the line of metrics.jsonl that has the key, without its speed."""
  text = (workdir / 'metrics.jsonl').read_text()
  found = [json.loads(line) for line in text.splitlines()]
  for line in found:
    line.pop('train/images_per_second', None)
  return {line['step']: line for line in found if key in line}


@needs_mpirun
@pytest.mark.slow
def test_losses_are_those_of_one_process(one, two):
  expected, actual = (lines(w, 'train/total_loss') for w, _ in (one, two))
  assert sorted(actual) == sorted(expected) == [1, 2, 3, 4]
  for step, line in expected.items():
    assert line['train/mask'] > 0
    np.testing.assert_allclose(
      [actual[step][name] for name in line],
      [*line.values()],
      rtol=FIRST_STEP if step == 1 else LATER_STEPS,
      err_msg=f'step {step}: {[*line]}',
    )


@needs_mpirun
@pytest.mark.slow
def test_results_are_those_of_one_process(one, two):
  expected, actual = (lines(w, 'eval/AP') for w, _ in (one, two))
  assert sorted(actual) == sorted(expected) == [3, 4]
  assert actual == expected
  # The files list the images of one process after those of the other.
  for step in expected:
    pair = [
      sorted(
        json.loads((w / f'eval/detections-{step}.json').read_text()),
        key=lambda result: result['image_id'],
      )
      for w, _ in (one, two)
    ]
    assert len(pair[0]) == len(pair[1]) == 12
    for single, several in zip(*pair):
      assert single['image_id'] == several['image_id']
      assert single['category_id'] == several['category_id']
      np.testing.assert_allclose(
        several['score'], single['score'], rtol=LATER_STEPS
      )
      np.testing.assert_allclose(several['bbox'], single['bbox'], atol=0.01)


@needs_mpirun
@pytest.mark.slow
def test_process_0_alone_prints_and_writes(two):
  workdir, done = two
  for text in ('compiling the step', 'step 1/4', 'step 3: 3 of 3 images'):
    assert done.stderr.count(text) == 1, done.stderr
  assert done.stdout.count('ARmax100') == 2, done.stdout
  names = {path.name for path in workdir.iterdir()}
  events = {name for name in names if name.startswith('events.out.')}
  assert names - events == {
    *('checkpoints', 'config.json', 'curves.png', 'eval'),
    *('metrics.jsonl', 'pictures'),
  }
  assert len((workdir / 'metrics.jsonl').read_text().splitlines()) == 6
  steps = sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir())
  # Every second one, and the one that was evaluated.
  assert steps == [2, 3, 4]
  assert checkpoint.read_position(workdir) == {'examples': 16, 'salt': 0}


@needs_mpirun
@pytest.mark.slow
def test_one_process_reads_the_checkpoint_of_two(one, two):
  states = [checkpoint.restore(workdir)[0] for workdir, _ in (one, two)]
  expected, actual = (np.concatenate(_flat(state)) for state in states)
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def _flat(tree):
  if isinstance(tree, dict):
    return [array for key in sorted(tree) for array in _flat(tree[key])]
  return [np.ravel(tree)]


@needs_mpirun
@pytest.mark.long
def test_resume_gives_the_same_losses_bit_by_bit(config, two, tmp_path):
  for num_steps in (2, 4):
    flag = f'--config.training.num_steps={num_steps}'
    done = execute([*MPIRUN, *command('train', config, tmp_path, flag)])
    assert done.returncode == 0, done.stderr
  assert done.stderr.count('continuing from step 2') == 1
  key = 'train/total_loss'
  assert lines(tmp_path, key) == lines(two[0], key)


@needs_mpirun
@pytest.mark.slow
def test_the_global_batch_is_that_of_one_process(tmp_path):
  pattern, _ = tiny_run.write_dataset(tmp_path)
  program = [sys.executable, '-c', BATCHES, pattern, str(tmp_path / 'ids')]
  for prefix in ((), MPIRUN):
    done = execute([*prefix, *program])
    assert done.returncode == 0, done.stderr
  (whole,), parts = (
    [json.loads(p.read_text()) for p in sorted(tmp_path.glob(f'ids-{n}-*'))]
    for n in (1, 2)
  )
  assert len(parts) == 2
  assert np.shape(whole['ids']) == (6, 4)
  ids = np.concatenate([part['ids'] for part in parts], axis=1)
  np.testing.assert_array_equal(ids, whole['ids'])
  for part in parts:  # The global array has the rows in the same order.
    assert part['sums'] == whole['sums']


BATCHES = """
import json, pathlib, sys
from maskrcnn_jax.distributed import processes as runtime
number = runtime.start_distributed()
import jax
import numpy as np
from maskrcnn_jax.input_pipeline import batches
from maskrcnn_jax.distributed import mesh as sharding
mesh = sharding.make_mesh()
total = jax.jit(
  lambda x: x.astype('int32').sum((1, 2, 3)),
  out_shardings=sharding.replicated(mesh),
)
found = batches.train_batches(
  sys.argv[1],
  ((64, 64),),
  host_index=jax.process_index(),
  host_count=jax.process_count(),
)
ids, sums = [], []
for _, batch in zip(range(6), found):
  ids.append(batch['image_ids'].tolist())
  images = sharding.put_batch(batch, mesh)['images']
  sums.append(np.asarray(total(images)).tolist())
path = pathlib.Path(f'{sys.argv[2]}-{number}-{jax.process_index()}')
path.write_text(json.dumps({'ids': ids, 'sums': sums}))
"""


@needs_mpirun
@pytest.mark.slow
def test_processes_bound_to_cores_find_a_finished_run(config, two):
  """The form of the reference, without its number of cores a process."""
  bound = ('mpirun', '--allow-run-as-root', '--bind-to', 'core', '--np', '2')
  if execute([*bound, 'true']).returncode:
    pytest.skip('mpirun finds fewer than two cores')
  done = execute([*bound, *command('train', config, two[0])])
  assert done.returncode == 0, done.stderr
  assert done.stdout.count('4 of 4 steps: nothing to train') == 1


@needs_mpirun
@pytest.mark.slow
def test_what_fails_in_all_processes_is_said_once(config, two):
  flag = '--config.model.backbone.width=8'
  done = execute([*MPIRUN, *command('train', config, two[0], flag)])
  assert done.returncode == 2
  assert done.stderr.count('holds a run of another model') == 1, done.stderr
  assert 'Traceback' not in done.stderr


@needs_mpirun
@pytest.mark.slow
def test_what_fails_in_one_process_ends_the_others(config, tmp_path):
  # The first batch has both classes, but not in the rows of each process.
  flags = ('--config.model.num_classes=2', '--config.input.batch_size=2')
  done = execute([*MPIRUN, *command('train', config, tmp_path, *flags)])
  assert done.returncode == 2
  assert done.stderr.count('Image 8 has class 2') == 1, done.stderr
  assert 'Traceback' not in done.stderr


@needs_mpirun
@pytest.mark.slow
def test_processes_must_share_the_workdir(config, two, tmp_path):
  own, other = (command('train', config, w) for w in (two[0], tmp_path))
  # One process with each workdir.
  done = execute([*MPIRUN[:-1], '1', *own, ':', '--np', '1', *other])
  assert done.returncode == 2
  message = '0 finished steps as one process sees it and 4 as another does'
  assert done.stderr.count(message) == 1, done.stderr
