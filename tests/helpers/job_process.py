"""Commands in processes of their own, as those of a job."""

import os
import pathlib
import subprocess
import sys

import quick

ROOT = pathlib.Path(__file__).parents[2]
LAUNCHER_NAMES = ('OMPI_', 'PMIX_', 'SLURM_', 'JAX_COORDINATOR')
LAUNCHER_NAMES += ('JAX_NUM_PROCESSES', 'JAX_PROCESS_ID', 'JOB_COMPLETION')


def environment(**variables):
  """Variables of a new process: no launcher, the CPU, quick compilation."""
  kept = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith((*LAUNCHER_NAMES, 'XLA_FLAGS'))
  }
  paths = [str(ROOT), str(ROOT / 'tests/helpers')]
  paths += filter(None, [os.environ.get('PYTHONPATH')])
  return {
    **kept,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': quick.xla_flags(),
    # `create_train_state` asks for more than these flags.
    'JAX_DISABLE_MOST_OPTIMIZATIONS': str('XLA_FLAGS' not in variables),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
    'TF_CPP_MIN_LOG_LEVEL': '2',
    'PYTHONPATH': os.pathsep.join(paths),
    **variables,
  }


def execute(arguments, timeout=600, cwd=None, **variables):
  """Runs a process to its end; its output is text."""
  return subprocess.run(
    arguments,
    cwd=cwd,
    env=environment(**variables),
    capture_output=True,
    text=True,
    check=False,
    timeout=timeout,
  )


def launched(size, rank, **more):
  """Variables that Open MPI sets in every version."""
  return {
    'OMPI_COMM_WORLD_SIZE': str(size),
    'OMPI_COMM_WORLD_LOCAL_SIZE': str(size),
    'OMPI_COMM_WORLD_RANK': str(rank),
    'OMPI_COMM_WORLD_LOCAL_RANK': str(rank),
    **more,
  }


def command(verb, config, workdir, *flags):
  """Arguments that run a verb in one process."""
  program = (sys.executable, '-m', 'maskrcnn_jax', verb)
  return [*program, f'--config={config}', f'--workdir={workdir}', *flags]
