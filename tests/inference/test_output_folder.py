"""The output folder: nothing that somebody else made is replaced."""

import json

import pytest

from maskrcnn_jax.inference.output_folder import OutputFolder


def write(path, names, summary=None):
  """A complete run that writes its own name into every file."""
  folder = OutputFolder(path, names)
  folder.claim(summary or {})
  for name in names:
    (path / name).parent.mkdir(exist_ok=True)
    folder.write(name, name)
  folder.write_list({**(summary or {}), 'complete': True})
  return folder


def content(path):
  files = (p for p in path.rglob('*') if p.is_file())
  return sorted(p.relative_to(path).as_posix() for p in files)


def test_a_run_and_another_one(tmp_path):
  path = tmp_path / 'deep' / 'out'
  write(path, ['a.json', 'pictures/x.png', 'pictures/y.png'])
  assert content(path) == [
    'a.json',
    'pictures/x.png',
    'pictures/y.png',
    'predict.json',
  ]
  write(path, ['a.json', 'pictures/y.png', 'pictures/z.png'])
  assert content(path) == [
    'a.json',
    'pictures/y.png',
    'pictures/z.png',
    'predict.json',
  ]
  listed = json.loads((path / 'predict.json').read_text())
  assert listed['files'] == content(path) and listed['complete']


def test_files_of_somebody_else_stay(tmp_path):
  write(tmp_path, ['a.json'])
  (tmp_path / 'mine.txt').write_text('mine')
  write(tmp_path, ['a.json', 'b.json'])
  assert (tmp_path / 'mine.txt').read_text() == 'mine'
  (tmp_path / 'c.json').write_text('mine')
  with pytest.raises(FileExistsError, match=r'holds c\.json, which predict'):
    OutputFolder(tmp_path, ['a.json', 'c.json'])
  assert content(tmp_path) == [
    'a.json',
    'b.json',
    'c.json',
    'mine.txt',
    'predict.json',
  ]


def test_a_folder_of_somebody_else_is_refused(tmp_path):
  (tmp_path / 'mine.txt').write_text('mine')
  with pytest.raises(FileExistsError, match='did not write'):
    OutputFolder(tmp_path, ['a.json'])
  # Another program's file of that name is no list of ours.
  (tmp_path / 'predict.json').write_text('{"files": 3}')
  with pytest.raises(FileExistsError, match='did not write'):
    OutputFolder(tmp_path, ['a.json'])
  with pytest.raises(NotADirectoryError, match='is a file'):
    OutputFolder(tmp_path / 'mine.txt', ['a.json'])


def test_an_empty_folder_will_do(tmp_path):
  write(tmp_path, ['a.json'])


def test_checking_changes_nothing(tmp_path):
  OutputFolder(tmp_path / 'out', ['a.json'])
  assert not (tmp_path / 'out').exists()


def test_a_run_that_was_cut_off_is_replaced(tmp_path):
  folder = OutputFolder(tmp_path, ['a.json', 'b.json'])
  folder.claim({})
  folder.write('a.json', 'half')
  write(tmp_path, ['b.json'])
  assert content(tmp_path) == ['b.json', 'predict.json']


def test_a_list_cannot_reach_out_of_the_folder(tmp_path):
  path = tmp_path / 'out'
  outside = tmp_path / 'outside.txt'
  outside.write_text('mine')
  write(path, ['a.json'])
  names = ['../outside.txt', str(outside), 7, 'a.json']
  (path / 'predict.json').write_text(json.dumps({'files': names}))
  write(path, ['b.json'])
  assert outside.read_text() == 'mine'
  assert content(path) == ['b.json', 'predict.json']
