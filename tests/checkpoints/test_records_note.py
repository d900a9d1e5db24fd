"""The note on training records: changed ones are noticed, moved ones not."""

import json

import ml_collections
import pytest
from example_records import example

from maskrcnn_jax.checkpoints import records_note
from maskrcnn_jax.datasets import records


@pytest.fixture
def check(tmp_path, caplog):
  """Writes records into files, checks them, and keeps the note as a run does.

  The fixture returns the warnings.
  """
  names = iter('abcdefgh')

  def run(*files, step=4):
    folder = tmp_path / next(names)
    folder.mkdir()
    for number, image_ids in enumerate(files):
      made = [records.encode_record(example(k)) for k in image_ids]
      records.write_records(folder / f'{number}.tfrecord', made)
    config = {'input': {'file_pattern': f'{folder}/*'}}
    config = ml_collections.ConfigDict(config)
    caplog.clear()
    notes = records_note.check(config, tmp_path, step)
    for name, text in notes.items():
      path = tmp_path / name
      if path.exists() and path.read_text() != text:
        path = path.with_stem(f'{path.stem}-from-step-{step}')
      path.write_text(text)
    return [x.getMessage() for x in caplog.records]

  return run


def test_changed_records_are_a_warning_once(check, tmp_path):
  assert not check([1, 2, 3], step=0)
  note = json.loads((tmp_path / records_note.FILE).read_text())
  assert note['num_records'] == 3
  assert not check([1], [2, 3])  # The same in other files.
  (warning,) = check([1, 2])
  assert 'The 2 training records' in warning
  assert 'step 4 (3 records)' in warning
  assert not check([1, 2])
  (warning,) = check([2, 1])


def test_a_run_without_a_note_or_checkpoint_is_not_warned(check):
  assert not check([1, 2])
  assert not check([1], step=0)
