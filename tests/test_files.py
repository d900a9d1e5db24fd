import os
import stat

import pytest

from maskrcnn_jax import files
from maskrcnn_jax.errors import UserError


def test_a_file_appears_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'new' / 'a.txt'
  with files.replaced(path) as unfinished:
    unfinished.write_text('half')
    assert not path.exists()
    unfinished.write_text('whole')
  assert path.read_text() == 'whole'
  with pytest.raises(RuntimeError), files.replaced(path) as unfinished:
    unfinished.write_text('half')
    raise RuntimeError
  assert path.read_text() == 'whole'
  assert os.listdir(path.parent) == ['a.txt']


def test_a_link_is_replaced_instead_of_followed(tmp_path):
  other = tmp_path / 'other'
  other.write_text('theirs')
  link = tmp_path / 'link'
  link.symlink_to(other)
  files.write_text(link, 'ours')
  assert other.read_text() == 'theirs'
  assert link.read_text() == 'ours' and not link.is_symlink()


def test_a_file_has_the_permissions_of_any_other(tmp_path):
  former = os.umask(0o027)
  try:
    files.write_text(tmp_path / 'a', '')
    with files.new_folder(tmp_path / 'folder'):
      pass
  finally:
    os.umask(former)
  assert stat.S_IMODE((tmp_path / 'a').stat().st_mode) == 0o640
  assert stat.S_IMODE((tmp_path / 'folder').stat().st_mode) == 0o750


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'folder'
  with files.new_folder(path) as unfinished:
    (unfinished / 'a').write_text('')
    assert not path.exists()
  assert os.listdir(path) == ['a']
  with pytest.raises(RuntimeError), files.new_folder(tmp_path / 'other'):
    raise RuntimeError
  assert os.listdir(tmp_path) == ['folder']


@pytest.mark.parametrize(
  'name', ['a.jpg', 'sub/..a/b', 'a..', ' ', 'é:', '1:30']
)
def test_names_inside_a_folder(tmp_path, name):
  assert files.inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
  'name',
  [
    *('../a', 'a/../../b', '..', '/etc/passwd', '//host/a'),
    *('', '.', './', 'a\0'),
    *('C:a', '..\\a', 'C:\\a', '\\\\host\\share\\a', '\\a'),
  ],
)
def test_names_that_lead_out_of_a_folder(tmp_path, name):
  with pytest.raises(UserError) as error:
    files.inside(tmp_path, name)
  assert (error.value.path, error.value.given) == (str(tmp_path), name)
