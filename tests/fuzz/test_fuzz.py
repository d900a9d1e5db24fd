"""Mutated files of every kind that is read: a value or one error that names it.

Never another exception, a signal, a hang, a program that is started or a file
that changes elsewhere. `MASKRCNN_FUZZ=1000` reads so many inputs of each kind
(by default few), `MASKRCNN_FUZZ_START` is the first seed; the folders of cases
that fail are kept in `MASKRCNN_FUZZ_KEEP`, or in the temporary folder.
"""

import json
import os
import pathlib
import select
import shutil
import subprocess
import sys

import label_sets
import pytest
import worker

HERE = pathlib.Path(__file__).parent
NAMES = (
  *('pth', 'legacy', 'pkl', 'npz', 'safetensors', 'tensorflow', 'keras'),
  *('records', 'tfds', 'coco', 'images', 'workdir', 'run', 'export'),
  *(name for name in label_sets.MAKERS if name != 'coco'),
)
COUNT = int(os.environ.get('MASKRCNN_FUZZ', '50'))
START = int(os.environ.get('MASKRCNN_FUZZ_START', '0'))
# Of one case, on a busy machine too; time of the processor is limited besides.
_SECONDS = 120


class Reader:
  """A process that reads mutated files, and its successors."""

  def __init__(self, folder):
    """Keeps its inputs in a folder."""
    self._folder = folder
    self._process = None

  def _start(self):
    (self._folder / 'temporary').mkdir(exist_ok=True)
    paths = [str(HERE.parents[1]), str(HERE.parent / 'helpers')]
    environment = {
      'JAX_PLATFORMS': 'cpu',
      'PYTHONPATH': os.pathsep.join(paths),
      'TF_CPP_MIN_LOG_LEVEL': '3',
      'TMPDIR': str(self._folder / 'temporary'),
    }
    self._log = (self._folder / 'log').open('w+')
    self._process = subprocess.Popen(
      [sys.executable, str(HERE / 'worker.py'), str(self._folder)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._log,
      env=os.environ | environment,
    )

  def read(self, target, seed):
    """The answer of the process, or how it ended."""
    if self._process is None:
      self._start()
    self._process.stdin.write(f'{target} {seed}\n'.encode())
    self._process.stdin.flush()
    output = self._process.stdout
    if select.select([output], [], [], _SECONDS)[0]:
      line = output.readline()
      if line:
        return json.loads(line)
      detail = f'ended with {self._process.wait()}'
    else:
      detail = 'hangs'
    self.close()
    log = (self._folder / 'log').read_text(errors='replace')
    return {'outcome': 'bug', 'detail': f'{detail}: {log[-1500:]}'}

  def keep(self, target, seed):
    """Copies the folder of the last case and returns its place."""
    parent = os.environ.get('MASKRCNN_FUZZ_KEEP', self._folder / 'kept')
    place = pathlib.Path(parent, f'{target}-{seed}')
    case = self._folder / f'case_{target}'
    if case.exists():  # Not if the process could not start.
      shutil.copytree(case, place, dirs_exist_ok=True)
    return place

  def close(self):
    """Ends the process; the next case starts another."""
    if self._process:
      self._process.kill()
      self._process.wait()
      self._log.close()
      self._process = None


@pytest.fixture(name='reader', scope='module')
def fixture_reader(tmp_path_factory):
  reader = Reader(tmp_path_factory.mktemp('fuzz'))
  yield reader
  reader.close()


@pytest.mark.slow
@pytest.mark.parametrize('target', NAMES)
def test_a_mutated_file_is_read_or_refused(reader, target):
  assert reader.read(target, worker.VALID)['outcome'] == 'value'
  bugs = []
  for seed in range(START, START + COUNT):
    found = reader.read(target, seed)
    if found['outcome'] == 'bug':
      bugs.append(f'{reader.keep(target, seed)}: {found["detail"]}')
  assert not bugs, '\n\n'.join(bugs)
