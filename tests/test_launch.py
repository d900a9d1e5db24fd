"""Scripts of launch/: processes of a job find each other, and end together."""

import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import plugin_environment
import pytest
import tiny_run
import yaml
from job_process import LAUNCHER_NAMES, environment

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.distributed import launcher

LAUNCH = pathlib.Path(__file__).parents[1] / 'launch'
ROOT = LAUNCH.parent
SCRIPTS = sorted([*LAUNCH.glob('*.sh'), *LAUNCH.glob('*.sbatch')])


def bash(*words, **variables):
  """A finished bash script, with its output as text."""
  return subprocess.run(
    ['bash', *map(str, words)],
    env=environment(**variables),
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )


def free_port():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def command_on_path(folder, text, name='maskrcnn-jax'):
  """PATH that starts with a folder whose command is a bash script."""
  folder.mkdir(exist_ok=True)
  (folder / name).write_text(f'#!/usr/bin/env bash\n{text}\n')
  (folder / name).chmod(0o755)
  return f'{folder}{os.pathsep}{os.environ["PATH"]}'


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_start_with_a_comment(path):
  assert bash('-n', path).returncode == 0
  first, second = path.read_text().splitlines()[:2]
  assert first == '#!/usr/bin/env bash'
  assert second.startswith('# ')


def test_the_table_lists_every_file():
  table = (LAUNCH / 'README.md').read_text()
  used_by_others = {'environment.sh'}
  for path in LAUNCH.iterdir():
    if path.is_file() and path.name not in {'README.md', *used_by_others}:
      assert f'launch/{path.name}' in table, path.name


@pytest.mark.parametrize(
  'name', ['multihost.sh', 'simulated_hosts.sh', 'slurm.sbatch', 'gaudi.sh']
)
def test_without_arguments_scripts_print_their_usage(name):
  done = bash(LAUNCH / name)
  assert done.returncode == 2
  assert done.stderr.startswith('usage: ')


JOIN = """
from maskrcnn_jax.distributed import processes
number = processes.start({'backend': 'cpu'})
import jax
print(number, jax.process_index(), jax.device_count(), jax.local_device_count())
"""


def check_two_join(*commands):
  """Runs the two processes of a job; returns the output of process 1."""
  processes = [
    subprocess.Popen(
      list(map(str, command)),
      env=environment(),
      stdout=subprocess.PIPE,
      text=True,
    )
    for command in commands
  ]
  first, second = [p.communicate(timeout=120)[0] for p in processes]
  assert first.split() == ['2', '0', '2', '1']
  return second


def test_processes_started_by_hand_join():
  address = f'127.0.0.1:{free_port()}'
  script = ('bash', LAUNCH / 'multihost.sh', address, 2)
  python = (sys.executable, '-c', JOIN)
  second = check_two_join((*script, 0, *python), (*script, 1, *python))
  assert second == ''


def test_the_config_can_describe_a_job():
  section = {
    'backend': 'cpu',
    'coordinator_address': f'localhost:{free_port()}',
    'num_processes': 2,
  }
  codes = [
    JOIN.replace("{'backend': 'cpu'}", repr({**section, 'process_id': index}))
    for index in (0, 1)
  ]
  check_two_join(*((sys.executable, '-c', code) for code in codes))


def test_simulated_hosts_join():
  job = (LAUNCH / 'simulated_hosts.sh', 2, sys.executable, '-c', JOIN)
  done = bash(*job, DEVICES='2')
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == ['2', '0', '4', '2']
  assert '[1] ' not in done.stdout


def test_simulated_hosts_end_with_the_first_that_fails():
  program = 'echo "here is $JAX_PROCESS_ID"; sleep 1'
  program += '; ((JAX_PROCESS_ID != 1)) || exit 7'
  start = time.monotonic()
  job = (LAUNCH / 'simulated_hosts.sh', 3, 'bash', '-c')
  done = bash(*job, f'{program}; sleep 60')
  assert time.monotonic() - start < 30
  assert done.returncode == 7
  assert done.stdout == 'here is 0\n'
  assert '[1] here is 1\n' in done.stderr
  assert 'process 1 of 3 ended with 7' in done.stderr


@pytest.fixture(scope='module')
def manifests():
  """Service and job of k8s_job.yaml."""
  service, job = yaml.safe_load_all((LAUNCH / 'k8s_job.yaml').read_text())
  assert (service['kind'], job['kind']) == ('Service', 'Job')
  return service, job


def test_pods_find_each_other(manifests, monkeypatch):
  service, job = manifests
  spec, pod = job['spec'], job['spec']['template']['spec']
  (container,) = pod['containers']
  variables = {item['name']: item['value'] for item in container['env']}
  assert spec['completionMode'] == 'Indexed'
  assert spec['completions'] == spec['parallelism']
  # A headless service with the names of the job's pods.
  assert service['spec']['clusterIP'] == 'None'
  assert service['spec']['publishNotReadyAddresses'] is True
  name = job['metadata']['name']
  assert service['spec']['selector'] == {'job-name': name}
  assert pod['subdomain'] == service['metadata']['name']
  host, _, port = variables['JAX_COORDINATOR_ADDRESS'].partition(':')
  assert host == f'{name}-0.{pod["subdomain"]}'
  assert container['ports'] == [{'containerPort': int(port)}]
  for hidden in [v for v in os.environ if v.startswith(LAUNCHER_NAMES)]:
    monkeypatch.delenv(hidden)
  for variable, value in variables.items():
    assert isinstance(value, str)  # Kubernetes accepts nothing else.
    monkeypatch.setenv(variable, value)
  monkeypatch.setenv('JOB_COMPLETION_INDEX', '3')  # By Kubernetes.
  expected = launcher.Launch('kubernetes', spec['completions'], 3)
  assert launcher.find_launch() == expected


def test_the_command_of_a_pod_is_valid(manifests):
  pod = manifests[1]['spec']['template']['spec']
  (container,) = pod['containers']
  program, verb, *flags = container['command']
  assert (program, verb) == ('maskrcnn-jax', 'train_and_eval')
  name, workdir, *overrides = flags
  config = config_lib.load_config(
    name.removeprefix('--config='),
    [flag.removeprefix('--config.') for flag in overrides],
  )
  gpus = container['resources']['limits']['nvidia.com/gpu']
  devices = gpus * manifests[1]['spec']['completions']
  assert config.input.batch_size % devices == 0
  # Everything is on the shared disk.
  volumes = {volume['name'] for volume in pod['volumes']}
  mounts = {m['name']: m['mountPath'] for m in container['volumeMounts']}
  assert mounts.keys() == volumes
  for text in (workdir, *overrides[:-2], overrides[-1]):
    assert text.partition('=')[2].startswith(f'{mounts["data"]}/')


# Stands in for srun, for a job of one machine.
SRUN = r"""
echo "srun $1" >&2; shift
pids=()
for ((i = 0; i < 2; ++i)); do
  SLURM_STEP_NUM_TASKS=2 SLURM_NTASKS=2 SLURM_PROCID=$i SLURM_LOCALID=$i \
    SLURM_JOB_ID=$$ SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1 "$@" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || exit; done
"""


def test_processes_of_slurm_join(tmp_path):
  command_on_path(tmp_path / 'bin', SRUN, 'srun')
  path = command_on_path(
    tmp_path / 'bin', f'echo "$@" >&2\n{sys.executable} -c "$JOIN"'
  )
  script, flags = LAUNCH / 'slurm.sbatch', ('train', '--config=shapes')
  done = bash(script, *flags, PATH=path, JOIN=JOIN, BACKEND='cpu')
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == ['2', '0', '2', '1']
  assert 'srun --kill-on-bad-exit=1' in done.stderr
  line = 'train --config=shapes --config.runtime.backend=cpu'
  assert done.stderr.count(line) == 2


def test_slurm_starts_a_process_for_each_gpu():
  lines = (LAUNCH / 'slurm.sbatch').read_text().splitlines()
  options = dict(
    line.removeprefix('#SBATCH --').partition('=')[::2]
    for line in lines
    if line.startswith('#SBATCH')
  )
  assert options['ntasks-per-node'] == options['gpus-per-node']


def test_gaudi_names_the_backend_and_the_library(tmp_path):
  path = command_on_path(tmp_path / 'bin', 'printf "%s\\n" "$@"')
  flags = ('train', '--workdir=a b')
  done = bash(LAUNCH / 'gaudi.sh', 1, *flags, PATH=path, HPU_PLUGIN='/x y.so')
  assert done.stdout.splitlines() == [
    *flags,
    '--config.runtime.backend=hpu',
    '--config.runtime.plugin_path=/x y.so',
  ]


@pytest.mark.slow
def test_gaudi_trains_where_a_plugin_registers_hpu(tmp_path):
  # One process: the plugin of the test is JAX's own CPU.
  python = plugin_environment.make(tmp_path)
  config = tiny_run.make_config(*tiny_run.write_dataset(tmp_path))
  config.input.batch_size = config.training.num_steps = 2
  config.runtime = {'backend': 'auto'}
  file = tiny_run.write_config(config, tmp_path / 'tiny.py')
  command = f'exec {python} -m maskrcnn_jax "$@"'
  flags = ('train', f'--config={file}', f'--workdir={tmp_path / "run"}')
  done = bash(
    *(LAUNCH / 'gaudi.sh', 1, *flags),
    PATH=command_on_path(tmp_path / 'bin', command),
    FAKE_HPU='healthy',
    JAX_PLATFORMS='',
  )
  assert done.returncode == 0, done.stderr
  assert 'training on 1 cpu with 2 images a step' in done.stderr
  assert 'computing on the CPU' not in done.stderr
  steps = [path.name for path in (tmp_path / 'run/checkpoints').iterdir()]
  assert steps == ['2']


# Stands in for Python: a benchmark is parsed, logged and answered at once, but
# for batches of $FAILING images.
BENCH = """
import json, os, pathlib, sys
argv = sys.argv[1:]
if argv[:3] != ['-m', 'maskrcnn_jax', 'bench']:
  os.execv(sys.executable, [sys.executable, *argv])
from maskrcnn_jax import config as config_lib
from maskrcnn_jax.cli import main
args = main._parse(argv[2:])
config = config_lib.load_config(args.config, args.override)
batch, (what,) = config.input.batch_size, args.what
with open(os.environ['LOG'], 'a') as log:
  print(what, batch, args.against is not None, file=log)
if str(batch) == os.environ.get('FAILING'):
  sys.exit('no memory')
title = {'step': 'train step'}.get(what, what)
row = {'name': 'maskrcnn_jax', 'seconds': {'median': 2.0}}
row['program'] = {'memory': {'needed': 3 * 2**30}}
result = {
  'machine': {'load_after': 0.0},
  'memory': {'before': 2**30, 'maskrcnn_jax': 4 * 2**30},
  'subject': {'batch_size': batch, 'canvas': config.input.canvases[0]}
  | {'dtype': config.model.dtype, 'images': 'synthetic'},
  'tables': {title: [row | {'images_per_second': batch / 2}]},
}
path = pathlib.Path(args.output, 'bench.json')
path.parent.mkdir()
path.write_text(json.dumps(result))
print('tables of', what, batch)
"""


@pytest.mark.slow
def test_a_gpu_is_measured_part_by_part(tmp_path):
  python = tmp_path / 'python'
  python.write_text(f'#!{sys.executable}{BENCH}')
  python.chmod(0o755)
  log, output = tmp_path / 'log', tmp_path / 'out'
  variables = {
    'BACKEND': 'cpu',
    'BATCHES': '2 1 3',
    'DETECTION_BATCHES': '1',
    'PROFILE_BATCH': '2',
    'TESTS': 'tests/ops/test_anchors_golden.py',
    'DEMO_SECONDS': '',
    'PYTHON': str(python),
    'TORCH_PYTHON': '',
    'LOG': str(log),
  }
  done = bash(LAUNCH / 'bench_gpu.sh', output, LIMIT='0', **variables)
  parts = 'step_2 detection_1 recordings profile_2 step_1 step_3'
  assert f'Not started within 0 s: {parts}.' in done.stderr
  assert done.returncode == 1 and not log.exists()
  done = bash(LAUNCH / 'bench_gpu.sh', output, FAILING='3', **variables)
  assert done.returncode == 1, done.stderr
  assert 'Failed: step_3 (1).' in done.stderr
  first = ['step 2', 'inference 1', 'profile 2', 'step 1', 'step 3']
  assert log.read_text().splitlines() == [f'{x} False' for x in first]
  report = (output / 'report.md').read_text()
  assert 'tables of inference 1' in report and ' passed in ' in report
  cells = [
    line.split('|') for line in report.splitlines() if 'train step' in line
  ]
  assert [(x[2].strip(), x[-2].strip()) for x in cells] == [
    ('1', '4'),
    ('2', '4'),
  ]
  # Again, with torchvision: only what is missing.
  variables['TORCH_PYTHON'] = 'true'
  done = bash(LAUNCH / 'bench_gpu.sh', output, **variables)
  assert done.returncode == 0, done.stderr
  assert log.read_text().splitlines()[len(first) :] == ['step 3 True']


def test_a_gpu_is_not_kept_waiting_for_packages(tmp_path):
  """What is missing is said at once: packages that pip cannot have either."""
  python = tmp_path / 'python'
  python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
  python.chmod(0o755)
  script = (LAUNCH / 'bench_gpu.sh', tmp_path / 'out')
  variables = {'PYTHON': str(python), 'PYTHONPATH': ''}
  done = bash(*script, **variables)
  assert (done.returncode, done.stdout) == (2, '')
  assert 'lacks jax jaxlib numpy;' in done.stderr
  for name in ('jax', 'jaxlib', 'numpy'):
    (tmp_path / 'site' / name).mkdir(parents=True)
    (tmp_path / 'site' / name / '__init__.py').touch()
  variables['PYTHONPATH'] = str(tmp_path / 'site')
  done = bash(*script, **variables)
  assert done.returncode == 2
  assert 'ml-collections' in done.stderr and 'pyyaml' in done.stderr


@pytest.mark.parametrize(
  'path', sorted((ROOT / '.github/workflows').iterdir()), ids=lambda x: x.name
)
def test_workflows_run_scripts_of_the_checkout(path):
  (job,) = yaml.safe_load(path.read_text())['jobs'].values()
  commands = ' '.join(step.get('run', '') for step in job['steps'])
  scripts = re.findall(r'bash (\S+)', commands)
  assert scripts
  for script in scripts:
    assert (ROOT / script).is_file(), script
