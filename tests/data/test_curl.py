"""Single files over a connection that breaks, lies or is refused."""

import hashlib
import shutil

import curl
import file_server
import numpy as np
import pytest

from maskrcnn_jax.errors import UserError

pytestmark = pytest.mark.skipif(not shutil.which('curl'), reason='needs curl')
CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = f'sha256:{hashlib.sha256(CONTENT).hexdigest()}'


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setattr(curl, '_BACKOFF_SECONDS', 0.01)
  with file_server.serve({'a/b.bin': CONTENT}) as served:
    yield served


def _file(server, folder, size=None, digest=SHA256, part=None, there=None):
  """A file of which a part, or all, may be there."""
  path = folder / 'deep' / 'b.bin'
  file = curl.File(f'{server.url}/a/b.bin', path, size, digest)
  for path, content in ((file.part, part), (file.path, there)):
    if content is not None:
      path.parent.mkdir(exist_ok=True)
      path.write_bytes(content)
  return file


def _download(file):
  """Downloads a file that becomes whole, and leaves nothing else."""
  curl.download([file])
  assert file.path.read_bytes() == CONTENT
  assert not file.part.exists()


def _ranges(server):
  return [asked for _, _, asked in server.requests]


def test_continues_where_the_connection_broke(server, tmp_path):
  server.cuts['a/b.bin'] = [100_000, 50_000]
  _download(_file(server, tmp_path, len(CONTENT)))
  assert _ranges(server) == [None, 'bytes=100000-', 'bytes=150000-']


def test_waits_for_a_busy_server(server, tmp_path):
  server.refusals['a/b.bin'] = [503, 429]
  _download(_file(server, tmp_path))
  assert len(server.requests) == 3


@pytest.mark.parametrize('size', [None, len(CONTENT)])
@pytest.mark.parametrize('there', [CONTENT[:1234], CONTENT, CONTENT + b'more'])
def test_continues_from_an_earlier_run(server, tmp_path, there, size):
  _download(_file(server, tmp_path, size, part=there))
  if len(there) == 1234:
    assert _ranges(server) == ['bytes=1234-']


def test_starts_again_where_the_server_does_not_resume(server, tmp_path):
  server.ranges = False
  server.cuts['a/b.bin'] = [100_000]
  _download(_file(server, tmp_path))


def test_gives_up_after_tries_without_progress(server, tmp_path):
  server.refusals['a/b.bin'] = [503] * 100
  file = _file(server, tmp_path, part=CONTENT[:1000])
  with pytest.raises(UserError, match=str(file.part)):
    curl.download([file])
  assert file.part.read_bytes() == CONTENT[:1000]
  assert len(server.requests) == 6


def test_a_file_that_is_right_makes_no_request(server, tmp_path):
  _download(_file(server, tmp_path))
  server.requests.clear()
  _download(_file(server, tmp_path))
  (tmp_path / 'b').mkdir()
  _download(_file(server, tmp_path / 'b', there=CONTENT))  # The user's own.
  assert not server.requests


def test_a_wrong_checksum_is_downloaded_again_and_named(server, tmp_path):
  file = _file(server, tmp_path, digest='sha256:' + '0' * 64)
  with pytest.raises(UserError) as error:
    curl.download([file])
  for each in (file.url, SHA256[7:], '0' * 64, 'b.bin.bad'):
    assert each in str(error.value)
  assert len(server.requests) == 2
  assert not file.path.exists() and not file.part.exists()
  assert file.path.with_name('b.bin.bad').read_bytes() == CONTENT


def test_a_wrong_answer_is_downloaded_again(server, tmp_path):
  server.files['a/b.bin'] = [CONTENT[::-1], CONTENT]
  file = _file(server, tmp_path)
  _download(file)
  names = sorted(path.name for path in file.path.parent.iterdir())
  assert names == ['.b.bin.verified', 'b.bin']


def test_a_wrong_file_of_the_user_is_set_aside(server, tmp_path):
  for count in (1, 2):
    file = _file(server, tmp_path, there=b'mine')
    _download(file)
    kept = sorted(file.path.parent.glob('b.bin.bad*'))
    assert [path.read_bytes() for path in kept] == [b'mine'] * count


def test_another_size_than_expected_is_refused_at_once(server, tmp_path):
  file = _file(server, tmp_path, size=5)
  with pytest.raises(UserError) as error:
    curl.download([file])
  assert error.value.path == str(file.path)
  assert curl.size_of(file.part) == 0 and len(server.requests) == 1


def test_every_failure_is_reported_and_the_rest_arrives(server, tmp_path):
  files = [
    curl.File(f'{server.url}/{name}', tmp_path / name)
    for name in ('a/b.bin', 'no', 'nowhere')
  ]
  with pytest.raises(UserError) as error:
    curl.download(files)
  for line, name in zip(str(error.value).splitlines(), ('no', 'nowhere')):
    assert f'{server.url}/{name}' in line and '404' in line
  assert (tmp_path / 'a' / 'b.bin').read_bytes() == CONTENT


def test_an_unreachable_server_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(curl, '_BACKOFF_SECONDS', 0.01)
  with file_server.serve({}) as closed:
    pass
  with pytest.raises(UserError, match=f'{closed.url}/x'):
    curl.download([curl.File(f'{closed.url}/x', tmp_path / 'x')])


def test_progress_is_printed(server, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(curl, '_SECONDS_IN_LOG', 0.01)
  server.refusals['a/b.bin'] = [503] * 3
  file = _file(server, tmp_path, len(CONTENT))
  _download(file)
  lines = capsys.readouterr().out.splitlines()
  assert '0.0 of 0.0 GB' in lines
  assert str(file.path) in lines[-1]
