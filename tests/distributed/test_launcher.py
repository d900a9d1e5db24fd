"""Launchers, start and collectives: processes find and tell each other."""

import json
import os
import subprocess
import sys

import jax
import pytest
from job_process import LAUNCHER_NAMES, environment, launched

from maskrcnn_jax.distributed import backends, collectives, launcher, processes
from maskrcnn_jax.errors import UserError


@pytest.fixture
def set_launcher(monkeypatch):
  """Sets variables in the environment of a process that nobody launched."""
  for name in [*os.environ]:
    if name.startswith(LAUNCHER_NAMES):
      monkeypatch.delenv(name)

  def set_variables(variables):
    for name, value in variables.items():
      monkeypatch.setenv(name, value)

  return set_variables


def slurm_step(num_tasks):
  return {
    'SLURM_STEP_NUM_TASKS': str(num_tasks),
    'SLURM_NTASKS': '4',
    'SLURM_PROCID': '1',
    'SLURM_LOCALID': '0',
  }


def numbered(num_processes, **variables):
  """Variables set by hand, or in the template of a pod."""
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
def test_the_launcher_is_recognized(variables, expected, set_launcher):
  set_launcher(variables)
  assert launcher.find_launch() == expected


@pytest.mark.parametrize(
  'variables, section, argument',
  [
    (numbered(2, JAX_PROCESS_ID=2), {}, 'JAX_PROCESS_ID'),
    (numbered('two', JAX_PROCESS_ID=0), {}, 'JAX_NUM_PROCESSES'),
    (numbered(2), {}, 'JAX_PROCESS_ID'),
    (numbered(2, JAX_PROCESS_ID=0), {}, 'runtime.coordinator_address'),
    # Open MPI 5 on two machines.
    (
      {
        **launched(2, 0, PMIX_SERVER_TMPDIR='/tmp'),
        'OMPI_COMM_WORLD_LOCAL_SIZE': '1',
      },
      {},
      'runtime.coordinator_address',
    ),
    # An address without a port.
    (
      launched(2, 0),
      {'coordinator_address': 'node1'},
      'runtime.coordinator_address',
    ),
    ({}, {'num_processes': 2}, 'runtime.process_id'),
    ({}, {'process_id': 0}, 'runtime.num_processes'),
  ],
)
def test_an_incomplete_job_is_an_error(
  variables, section, argument, set_launcher
):
  set_launcher(variables)
  with pytest.raises(UserError) as error:
    processes.start(section)
  assert error.value.argument == argument
  assert argument in str(error.value)


def test_a_single_process_starts_and_ends_by_itself(set_launcher):
  assert processes.start_distributed() == 1
  processes.end_job('not printed', 2)


def test_all_processes_must_have_the_backend(set_launcher):
  with pytest.raises(UserError) as error:
    backends.pick_backend('auto', num_processes=2)
  assert error.value.argument == 'runtime.backend'
  assert '1 of 2' in str(error.value)


def test_a_process_alone_exchanges_with_itself():
  assert collectives.broadcast(True) is True
  assert collectives.all_gather({'a': 1}) == [{'a': 1}]
  assert collectives.gather([1, 2]) == [1, 2]
  assert collectives.first_error('') == ''
  assert collectives.first_error('full') == 'full'
  assert collectives.all_statuses('step 1', 0) == []
  collectives.barrier()


def start(code, *arguments, **variables):
  """A new process that runs a program, with these variables of a launcher."""
  return subprocess.Popen(
    [sys.executable, '-c', code, *map(str, arguments)],
    env=environment(**variables),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


EXCHANGE = """
import json, sys
from maskrcnn_jax.distributed import collectives, processes
processes.start({'backend': 'cpu'})
import jax
rank = jax.process_index()
long = 'x' * 3000
report = {
  'broadcast': [bool(collectives.broadcast(rank == n)) for n in range(2)],
  'all_gather': collectives.all_gather({'rank': rank, 'text': long[:rank]}),
  'gather': collectives.gather([rank] * (rank + 1)),
  'none': collectives.first_error(''),
  'second': collectives.first_error(f'{long} é' if rank else ''),
  'statuses': collectives.all_statuses(f'step {rank}', 30),
}
collectives.barrier()
open(f'{sys.argv[1]}/{rank}.json', 'w').write(json.dumps(report))
"""


def test_two_processes_exchange_values(tmp_path):
  address = launcher.free_address()
  running = [
    start(
      *(EXCHANGE, tmp_path),
      **numbered(2, JAX_PROCESS_ID=rank, JAX_COORDINATOR_ADDRESS=address),
    )
    for rank in range(2)
  ]
  errors = [p.communicate(timeout=120)[1] for p in running]
  assert [p.returncode for p in running] == [0, 0], errors
  for rank in range(2):
    report = json.loads((tmp_path / f'{rank}.json').read_text())
    assert report['broadcast'] == [True, False]
    assert report['all_gather'] == [
      {'rank': 0, 'text': ''},
      {'rank': 1, 'text': 'x'},
    ]
    assert report['gather'] == ([] if rank else [0, 1, 1])
    assert report['none'] == ''
    assert report['second'] == 'x' * 3000 + ' é'
    statuses = [line.partition(': ') for line in report['statuses']]
    assert [status for *_, status in statuses] == ['step 0', 'step 1']
    for other, (name, *_) in enumerate(statuses):
      assert f'process {other} on ' in name
      assert f'pid {running[other].pid}' in name


JOIN = """
from maskrcnn_jax.distributed import backends, processes
number = processes.start_distributed()
backends.pick_backend('cpu', number)
import jax
print(number, jax.process_index(), jax.device_count(), jax.local_device_count())
"""


def test_processes_of_open_mpi_5_find_each_other_on_one_machine(tmp_path):
  """Its variables, without mpirun: each version names this folder."""
  job = {
    'PMIX_SERVER_TMPDIR': str(tmp_path),
    'PMIX_NAMESPACE': 'prterun-host-12345@1',
  }
  running = [start(JOIN, **launched(2, rank, **job)) for rank in (1, 0)]
  second, first = [p.communicate(timeout=120)[0] for p in running]
  assert [p.returncode for p in running] == [0, 0]
  assert first.split() == ['2', '0', '2', '1']
  assert second == ''  # Process 0 alone prints.
  (path,) = tmp_path.iterdir()
  assert path.name == 'jax-coordinator-prterun-host-12345@1'


FAIL = """
import sys, time
from maskrcnn_jax.distributed import processes
time.sleep = lambda seconds: print(seconds, flush=True)
processes.end_job('the cause', 3, expected=sys.argv[1] == 'expected')
"""


@pytest.mark.slow
def test_the_process_that_knows_the_cause_ends_first():
  cases = ((0, 'expected'), (1, 'expected'), (0, 'a bug'))
  running = [start(FAIL, kind, **launched(2, rank)) for rank, kind in cases]
  seconds = []
  for process in running:
    slept, message = process.communicate(timeout=60)
    seconds.append(int(slept))
    assert (process.returncode, message) == (3, 'the cause\n')
  assert seconds == [0, 3, 6]


def test_the_compilation_cache_is_set_once(tmp_path, monkeypatch):
  before = jax.config.jax_compilation_cache_dir
  try:
    jax.config.update('jax_compilation_cache_dir', None)
    processes.enable_compilation_cache('')
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.setenv('HOME', str(tmp_path))
    processes.enable_compilation_cache('~/xla')
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'xla')
    processes.enable_compilation_cache(str(tmp_path / 'other'))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'xla')
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
