"""Lock of a workdir: one run at a time; a crash needs no hand."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from job_process import environment

from maskrcnn_jax.checkpoints import workdir_lock
from maskrcnn_jax.checkpoints.compatibility import WorkdirError

# Takes the lock of one folder after the other, at a line of input each, says
# so, and keeps it until the next line.
HOLD = """
import errno, sys
from maskrcnn_jax.checkpoints import workdir_lock
if sys.argv[1] == 'no flock':
  def flock(*_):
    raise OSError(errno.ENOLCK, 'No locks available')
  workdir_lock.fcntl.flock = flock
for folder in sys.argv[2:]:
  sys.stdin.readline()
  try:
    with workdir_lock.held(folder):
      print('held', flush=True)
      sys.stdin.readline()
  except ValueError as error:
    print(error.item, error, flush=True)
"""


@pytest.fixture(params=['flock', 'no flock'])
def kind(request, monkeypatch):
  """With the locks of the kernel, and on a file system that has none."""
  if request.param == 'no flock':

    def flock(*_):
      raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(fcntl, 'flock', flock)
  return request.param


@contextlib.contextmanager
def holders(kind, *workdirs, count=1):
  """Processes that are ready to take the locks."""
  started = [
    subprocess.Popen(
      [sys.executable, '-c', HOLD, kind, *map(str, workdirs)],
      env=environment(),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    for _ in range(count)
  ]
  try:
    yield started
  finally:
    for process in started:
      process.kill()
      process.communicate()


def say(process):
  process.stdin.write('\n')
  process.stdin.flush()


def hold(process):
  say(process)
  assert process.stdout.readline() == 'held\n'


def refusal(workdir):
  with pytest.raises(WorkdirError) as error, workdir_lock.held(workdir):
    pass
  return error.value


def contents(workdir):
  return sorted(path.name for path in workdir.iterdir())


def test_a_second_run_is_refused_until_the_first_ends(tmp_path, kind):
  workdir = tmp_path / 'run'
  with holders(kind, workdir) as (process,):
    hold(process)
    before = (workdir / workdir_lock.FILE).read_bytes()
    error = refusal(workdir)
    assert (error.path, error.item) == (str(workdir), process.pid)
    assert error.given == os.uname().nodename
    assert json.loads(before)['since'] in str(error)
    assert contents(workdir) == [workdir_lock.FILE]
    assert (workdir / workdir_lock.FILE).read_bytes() == before
    say(process)
    assert process.wait(60) == 0
  # The folder was made for it, and nothing was put there.
  assert not workdir.exists()


def test_a_killed_run_needs_no_hand(tmp_path, kind, caplog):
  with holders(kind, tmp_path) as (process,):
    hold(process)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    with workdir_lock.held(tmp_path):
      assert refusal(tmp_path).item == os.getpid()
    assert f'process {process.pid} ' in caplog.text
  assert contents(tmp_path) == []


def test_of_runs_that_start_at_once_exactly_one_wins(tmp_path, kind):
  new, stale = tmp_path / 'new', tmp_path / 'stale'
  stale.mkdir()
  lock = {**workdir_lock._identity(), 'started': '1'}
  (stale / workdir_lock.FILE).write_text(json.dumps(lock))
  with holders(kind, new, stale, count=3) as processes:
    pids = {str(process.pid) for process in processes}
    for _ in (new, stale):
      for process in processes:
        say(process)
      said = [process.stdout.readline() for process in processes]
      assert said.count('held\n') == 1, said
      assert {text.split()[0] for text in said} <= {'held', *pids}, said
      say(processes[said.index('held\n')])  # Gives it back.


@pytest.mark.parametrize('kind_of_pid', ['ended', 'reused'])
def test_a_lock_of_a_process_that_is_gone_is_replaced(
  tmp_path, kind, kind_of_pid
):
  lock = {**workdir_lock._identity(), 'started': '1'}
  if kind_of_pid == 'ended':
    lock['pid'] = 2**22 + 1
  (tmp_path / workdir_lock.FILE).write_text(json.dumps(lock))
  with workdir_lock.held(tmp_path):
    found = json.loads((tmp_path / workdir_lock.FILE).read_text())
    assert found['pid'] == os.getpid()


@pytest.fixture
def other_machine(tmp_path, monkeypatch):
  """The lock of a run of another machine; seconds pass faster."""
  monkeypatch.setattr(workdir_lock, '_BEAT_SECONDS', 0.1)
  monkeypatch.setattr(workdir_lock, '_STALE_SECONDS', 1.0)
  lock = {**workdir_lock._identity(), 'machine': 'other', 'host': 'node7'}
  path = tmp_path / workdir_lock.FILE
  path.write_text(json.dumps(lock))
  return path


def test_a_run_of_another_machine_lives_by_its_heartbeat(
  tmp_path, kind, other_machine
):
  beat = 'import os, sys, time\nwhile True:\n  os.utime(sys.argv[1])\n'
  beat += '  time.sleep(0.1)\n'
  process = subprocess.Popen([sys.executable, '-c', beat, str(other_machine)])
  try:
    time.sleep(0.5)
    error = refusal(tmp_path)
    assert (error.given, error.item) == ('node7', os.getpid())
  finally:
    process.kill()
    process.wait()
  start = time.monotonic()
  with workdir_lock.held(tmp_path):
    assert time.monotonic() - start > 0.9


@pytest.mark.parametrize('text', ['', '[' * 9999, '{"pid": "../../x"}', '7'])
def test_an_unreadable_lock_is_that_of_another_machine(
  tmp_path, other_machine, text
):
  other_machine.write_text(text)
  (tmp_path / 'config.json').write_text('{}')
  with workdir_lock.held(tmp_path):
    pass
  assert contents(tmp_path) == ['config.json']


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
  (tmp_path / 'mine').write_text('mine')
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / workdir_lock.FILE).symlink_to(tmp_path / 'mine')
  with (
    pytest.raises(WorkdirError) as error,
    workdir_lock.held(tmp_path / 'run'),
  ):
    pass
  assert workdir_lock.FILE in str(error.value)
  assert (tmp_path / 'mine').read_text() == 'mine'


@pytest.mark.slow
def test_a_run_that_lost_its_lock_ends(tmp_path):
  """It stood still for so long that another run took its place."""
  with holders('flock', tmp_path) as (process,):
    hold(process)
    path = tmp_path / workdir_lock.FILE
    path.unlink()
    path.write_text('{}')
    assert process.wait(30) == 2
