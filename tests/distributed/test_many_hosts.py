"""Simulated hosts: the same run on every layout; a lost process is named."""

import json
import pathlib
import re
import signal
import socket
import subprocess
import time

import pytest
import tiny_run
from job_process import command, environment, execute
from tiny_checkpoint import assert_same

from maskrcnn_jax.checkpoints import store
from maskrcnn_jax.distributed import launcher

pytestmark = [pytest.mark.slow, pytest.mark.long]

ROOT = pathlib.Path(__file__).parents[2]
HOSTS = ROOT / 'launch' / 'simulated_hosts.sh'
# From a kill to the end of the other process, which waits for statuses.
SECONDS_TO_END = 60


def on_hosts(num_hosts, devices, arguments):
  """Runs a command to its end on simulated hosts with some devices each."""
  arguments = ['bash', HOSTS, str(num_hosts), *arguments]
  done = execute(arguments, DEVICES=str(devices))
  assert done.returncode == 0, done.stderr
  return done


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """Path of a config for 61 images."""
  folder = tmp_path_factory.mktemp('config')
  config = tiny_run.make_config(*tiny_run.write_dataset(folder, 61))
  config.input.batch_size = config.evaluation.batch_size = 4
  config.runtime = {
    'backend': 'cpu',
    'compilation_cache': str(folder / 'programs'),
    'heartbeat_seconds': 10,
    'watchdog_seconds': 300,
  }
  return tiny_run.write_config(config, folder / 'tiny.py')


@pytest.fixture(scope='module')
def four_devices(config, tmp_path_factory):
  """Workdir of four steps on four devices, by the number of hosts."""
  workdirs = {}
  for hosts in (1, 2, 4):
    workdirs[hosts] = tmp_path_factory.mktemp(f'hosts{hosts}')
    on_hosts(hosts, 4 // hosts, command('train', config, workdirs[hosts]))
  return workdirs


@pytest.mark.parametrize('hosts', [2, 4])
def test_the_layout_of_devices_does_not_matter(four_devices, hosts):
  key = 'train/total_loss'
  expected, actual = (tiny_run.lines(four_devices[n], key) for n in (1, hosts))
  assert sorted(expected) == [1, 2, 3, 4]
  assert actual == expected
  assert_same(*(store.restore(four_devices[n])[0] for n in (1, hosts)))


def test_a_restart_on_the_same_hosts_is_exact(config, four_devices, tmp_path):
  for num_steps in (2, 4):
    flag = f'--config.training.num_steps={num_steps}'
    on_hosts(2, 2, command('train', config, tmp_path, flag))
  key = 'train/total_loss'
  assert tiny_run.lines(tmp_path, key) == tiny_run.lines(four_devices[2], key)
  assert_same(*(store.restore(w)[0] for w in (four_devices[2], tmp_path)))


@pytest.mark.parametrize('batch_size', [4, 12])
def test_61_images_on_3_hosts(config, four_devices, batch_size, tmp_path):
  per_device = -(-batch_size // 3)
  found = []
  for hosts, size in ((1, per_device), (3, batch_size)):
    flags = (
      f'--checkpoint={four_devices[1]}',
      f'--config.evaluation.batch_size={size}',
    )
    workdir = tmp_path / str(hosts)
    done = on_hosts(hosts, 1, command('eval', config, workdir, *flags))
    assert 'step 4: 61 of 61 images evaluated' in done.stderr
    (path,) = (workdir / 'eval').glob('detections-4.json')
    results = json.loads(path.read_text())
    results.sort(key=lambda result: (result['image_id'], -result['score']))
    found.append((tiny_run.lines(workdir, 'eval/AP'), results))
  rounded = 'evaluation.batch_size 4 becomes 6: 3 devices' in done.stderr
  assert rounded == (batch_size == 4)
  # The 24 numbers and every detection, to the last digit.
  assert found[0] == found[1]


def start_both(config, workdir):
  """Two processes as on two machines, where no launcher ends the other."""
  address = launcher.free_address()
  flag = '--config.training.num_steps=100000'
  script = ('bash', ROOT / 'launch' / 'multihost.sh', address, '2')
  return [
    subprocess.Popen(
      [*script, str(index), *command('train', config, workdir, flag)],
      env=environment(),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in (0, 1)
  ]


def wait_for_step(workdir, step, processes):
  """Until metrics.jsonl has a line of the step."""
  end = time.monotonic() + 300
  while time.monotonic() < end:
    assert all(p.poll() is None for p in processes), processes[0].stdout.read()
    path = workdir / 'metrics.jsonl'
    if path.exists() and f'"step": {step},' in path.read_text():
      return
    time.sleep(0.2)
  raise AssertionError(f'no step {step} within 300 s')


@pytest.mark.parametrize('victim', [1, 0])
def test_a_killed_process_is_named_and_both_start_again(
  config, victim, tmp_path
):
  processes = start_both(config, tmp_path)
  try:
    wait_for_step(tmp_path, 6, processes)
    processes[victim].send_signal(signal.SIGKILL)
    start = time.monotonic()
    other = processes[1 - victim]
    output, _ = other.communicate(timeout=SECONDS_TO_END)
    seconds = time.monotonic() - start
    print(f'{seconds:.1f} s', output[-3000:])
    assert other.returncode not in (0, None)
    pid = processes[victim].pid
    host = socket.gethostname()
    assert re.search(rf'Lost: process {victim} on {host}, pid {pid}: ', output)
  finally:
    for process in processes:
      process.kill()
  again = start_both(config, tmp_path)
  try:
    wait_for_step(tmp_path, 20, again)
  finally:
    for process in again:
      process.kill()
  output = again[0].communicate()[0]
  assert re.search(r'continuing from step \d+ of', output)
