"""Weight files that are made to exhaust a machine: refused at little cost."""

import json
import pathlib
import subprocess
import sys

import hostile_weights
import numpy as np
import pytest
import tensorflow_checkpoint

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import external

PROCESS = pathlib.Path(hostile_weights.__file__)


@pytest.fixture(scope='module')
def results(tmp_path_factory):
  """(kind, text, seconds, bytes) of reading each file, by its path."""
  paths = hostile_weights.write(tmp_path_factory.mktemp('hostile'))
  done = subprocess.run(
    [sys.executable, PROCESS],
    input='\n'.join(map(str, paths)),
    stdout=subprocess.PIPE,
    text=True,
    check=False,
  )
  lines = [json.loads(line) for line in done.stdout.splitlines()]
  assert len(lines) == len(paths), f'{paths[len(lines)]} ended the process.'
  return {path: result for path, *result in lines}


@pytest.mark.slow
def test_each_is_refused_by_a_short_line_that_names_it(results):
  for path, (kind, text, *_) in results.items():
    assert kind == 'refused', (path, text)
    # Of a TensorFlow checkpoint, the index or the file of data.
    assert text.startswith(path.removesuffix('.index')), text
    assert text.isprintable() and len(text) < len(path) + 500, text


def test_each_takes_little_time_and_memory(results):
  for path, (*_, seconds, peak) in results.items():
    assert seconds < hostile_weights.SECONDS, path
    assert peak < hostile_weights.BYTES, path


_OPENED = None


def _record(event, arguments):
  if _OPENED is not None and event in ('open', 'os.listdir', 'os.scandir'):
    _OPENED.append(str(arguments[0]))


@pytest.mark.parametrize('name', ['{}/secret/model', '../secret/model', '..'])
def test_nothing_outside_the_given_folder_is_opened(
  tmp_path, name, monkeypatch
):
  for folder in ('secret', 'given'):
    (tmp_path / folder).mkdir()
  tensors = {'conv2d/kernel': np.ones((1, 1, 3, 4), np.float32)}
  tensorflow_checkpoint.write_named(tmp_path / 'secret' / 'model', tensors)
  state = f'model_checkpoint_path: "{name.format(tmp_path)}"\n'
  (tmp_path / 'given' / 'checkpoint').write_text(state)
  sys.addaudithook(_record)
  monkeypatch.setattr(sys.modules[__name__], '_OPENED', [])
  with pytest.raises(UserError):
    external.read(tmp_path / 'given')
  assert str(tmp_path / 'given' / 'checkpoint') in _OPENED
  there = str(tmp_path / 'given')
  assert all(path.startswith(there) for path in _OPENED)
