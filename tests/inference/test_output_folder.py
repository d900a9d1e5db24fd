"""The output folder: no file of somebody else is replaced or removed."""

import json
import os
import pathlib

import pytest

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.inference.output_folder import OutputFolder

PAGE, A, B, C = 'index.html', *(f'pictures/{x}.png' for x in 'abc')


def write(path, names):
  """A complete run that writes its own name into every file."""
  folder = OutputFolder(path, names)
  folder.claim({})
  for name in names:
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text(name)
  folder.finish({'complete': True})


def content(path):
  files = (p for p in path.rglob('*') if p.is_file())
  return sorted(p.relative_to(path).as_posix() for p in files)


def test_a_second_run_replaces_the_first(tmp_path):
  path = tmp_path / 'deep' / 'out'
  for names in ([PAGE, A, B], [PAGE, B, C]):
    write(path, names)
    assert content(path) == [*names, 'predict.json']
  listed = json.loads((path / 'predict.json').read_text())
  assert listed['files'] == content(path) and listed['complete']


def test_files_of_somebody_else_stay(tmp_path):
  write(tmp_path, [PAGE])
  (tmp_path / 'mine.txt').write_text('mine')
  write(tmp_path, [PAGE, A])
  (tmp_path / B).write_text('mine')
  with pytest.raises(FileExistsError, match=B):
    OutputFolder(tmp_path, [PAGE, B])
  assert content(tmp_path) == [PAGE, 'mine.txt', A, B, 'predict.json']


def test_a_folder_of_somebody_else_is_refused(tmp_path):
  (tmp_path / 'mine.txt').write_text('mine')
  # Another program's file of that name is no list of ours.
  for text in (None, '{"files": 3}', '[' * 100_000):
    if text:
      (tmp_path / 'predict.json').write_text(text)
    with pytest.raises(FileExistsError, match=str(tmp_path)):
      OutputFolder(tmp_path, [PAGE])
  with pytest.raises(NotADirectoryError, match=r'mine\.txt'):
    OutputFolder(tmp_path / 'mine.txt', [PAGE])


def test_checking_changes_nothing(tmp_path):
  OutputFolder(tmp_path / 'out', [PAGE])
  assert not (tmp_path / 'out').exists()


def test_a_run_that_was_killed_is_replaced(tmp_path):
  OutputFolder(tmp_path, [PAGE, 'images.json']).claim({})
  (tmp_path / PAGE).write_text('half')
  write(tmp_path, ['images.json'])
  assert content(tmp_path) == ['images.json', 'predict.json']


def test_only_names_that_predict_writes_are_removed(tmp_path):
  path, outside = tmp_path / 'out', tmp_path / 'pictures' / 'x.png'
  write(path, [PAGE, A])
  outside.parent.mkdir()
  foreign = [outside, path / 'notes.txt', path / 'pictures' / 'x.txt']
  for file in foreign:
    file.write_text('mine')
  names = [
    *('../pictures/x.png', 'pictures/../../pictures/x.png', str(outside)),
    *('notes.txt', 'pictures/x.txt', 'pictures', '', 'pictures/\0.png', 7, A),
  ]
  (path / 'predict.json').write_text(json.dumps({'files': names}))
  write(path, [B])
  assert all(file.read_text() == 'mine' for file in foreign)
  assert not (path / A).exists()


@pytest.mark.parametrize(
  'link, target',
  [
    ('pictures', 'elsewhere'),
    ('predict.json', 'elsewhere/a.png'),
    *((A, 'elsewhere/a.png'), (A, 'elsewhere/new')),
  ],
)
def test_nothing_is_written_or_removed_through_a_link(tmp_path, link, target):
  """A received folder may hold links, and a list that names what they show."""
  path = tmp_path / 'out'
  (path / link).parent.mkdir(parents=True)
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'elsewhere' / 'a.png').write_text('mine')
  os.symlink(tmp_path / target, path / link)
  for listed in ([], [A]):
    if link != 'predict.json':
      (path / 'predict.json').write_text(json.dumps({'files': listed}))
    try:
      OutputFolder(path, [A]).claim({})
    except (FileExistsError, UserError) as error:
      assert pathlib.Path(link).name in str(error) or link == 'predict.json'
    else:
      assert listed and not os.path.lexists(path / A)
  assert content(tmp_path / 'elsewhere') == ['a.png']
