"""Files of a user in the folder of a new run stay as they are."""

import pytest

from maskrcnn_jax.checkpoints import foreign_files, workdir_lock
from maskrcnn_jax.checkpoints.compatibility import WorkdirError

OWN_METRICS = '{"step": 7, "eval/AP": 0.5, "eval/AP50": null}\n'


def put(folder, files):
  for name, text in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def contents(folder):
  paths = [path for path in folder.rglob('*') if path.is_file()]
  return {str(path.relative_to(folder)): path.read_text() for path in paths}


@pytest.mark.parametrize(
  'name, text',
  [
    ('curves.png', 'mine'),
    ('run.lock', 'mine'),
    ('metrics.jsonl', 'mine\n'),
    ('metrics.jsonl', '{"step": 7, "loss": 0.5}\n'),
    ('metrics.jsonl', '{"epoch": 7, "train/loss": 0.5}\n'),
    ('checkpoints/7/model.pt', 'mine'),
  ],
)
def test_a_file_of_a_user_is_in_the_way(tmp_path, name, text):
  put(tmp_path, {name: text, 'notes.txt': 'mine'})
  before = contents(tmp_path)
  with pytest.raises(WorkdirError) as error, workdir_lock.held(tmp_path):
    pass
  assert error.value.item == '/'.join(name.split('/')[:2])
  assert contents(tmp_path) == before


@pytest.mark.parametrize(
  'files',
  [
    {'notes.txt': 'mine'},
    {'metrics.jsonl': ''},
    {'metrics.jsonl': OWN_METRICS, 'curves.png': 'ours'},
    {'config.json': '{}', 'curves.png': '', 'metrics.jsonl': 'half a li'},
    {
      'checkpoints/7/state/x': '',
      'checkpoints/7/config/x': '',
      'curves.png': '',
    },
  ],
)
def test_what_runs_and_evaluations_wrote_is_not(tmp_path, files):
  put(tmp_path, files)
  foreign_files.check(tmp_path)
  with workdir_lock.held(tmp_path):
    pass
