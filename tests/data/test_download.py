"""Single files over a connection that breaks, lies or is refused."""

import base64
import hashlib
import pathlib
import sys

import file_server
import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / 'data'
sys.path.insert(0, str(FOLDER))

import download  # noqa: E402
import progress  # noqa: E402
import transfer  # noqa: E402

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = f'sha256:{hashlib.sha256(CONTENT).hexdigest()}'


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setattr(transfer, '_BACKOFF_SECONDS', 0.01)
  with file_server.serve({'a/b.bin': CONTENT}) as served:
    yield served


def _file(server, folder, size=None, digest=None):
  path = folder / 'deep' / 'b.bin'
  return download.File(f'{server.url}/a/b.bin', path, size, digest)


def _ranges(server):
  return [asked for _, _, asked in server.requests]


def test_goes_on_where_the_connection_broke(server, tmp_path):
  server.cuts['a/b.bin'] = [100_000, 50_000]
  file = _file(server, tmp_path, len(CONTENT), SHA256)
  download.download([file])
  assert file.path.read_bytes() == CONTENT
  assert not file.part.exists()
  assert _ranges(server) == [None, 'bytes=100000-', 'bytes=150000-']


def test_waits_for_a_busy_server(server, tmp_path):
  server.refusals['a/b.bin'] = [503, 429]
  file = _file(server, tmp_path, digest=SHA256)
  download.download([file])
  assert file.path.read_bytes() == CONTENT
  assert len(server.requests) == 3


def test_goes_on_from_an_earlier_run(server, tmp_path):
  file = _file(server, tmp_path, digest=SHA256)
  file.part.parent.mkdir()
  file.part.write_bytes(CONTENT[:1234])
  download.download([file])
  assert file.path.read_bytes() == CONTENT
  assert _ranges(server) == ['bytes=1234-']


@pytest.mark.parametrize('there', [CONTENT, CONTENT + b'more'])
def test_a_part_that_reaches_the_end_or_beyond(server, tmp_path, there):
  file = _file(server, tmp_path, digest=SHA256)
  file.part.parent.mkdir()
  file.part.write_bytes(there)
  download.download([file])
  assert file.path.read_bytes() == CONTENT


def test_starts_again_where_the_server_does_not_resume(server, tmp_path):
  server.ranges = False
  server.cuts['a/b.bin'] = [100_000]
  file = _file(server, tmp_path, digest=SHA256)
  download.download([file])
  assert file.path.read_bytes() == CONTENT


def test_gives_up_where_no_try_brings_more(server, tmp_path):
  server.ranges = False
  server.cuts['a/b.bin'] = [1000] * 100
  file = _file(server, tmp_path)
  with pytest.raises(download.DownloadError, match='after 6 tries; 1000 bytes'):
    download.download([file])
  assert file.part.read_bytes() == CONTENT[:1000]
  assert len(server.requests) == 6


def test_a_second_time_nothing_is_asked(server, tmp_path):
  file = _file(server, tmp_path, digest=SHA256)
  download.download([file])
  server.requests.clear()
  download.download([file])
  assert not server.requests


def test_wrong_checksum_is_fetched_once_more_and_named(server, tmp_path):
  file = _file(server, tmp_path, digest='sha256:' + '0' * 64)
  with pytest.raises(download.DownloadError) as caught:
    download.download([file])
  text = str(caught.value)
  assert f'{file.url}) has the sha256 sum {SHA256[7:]}' in text
  assert f'expected {"0" * 64}' in text and 'b.bin.bad.' in text
  assert len(server.requests) == 2
  assert not file.path.exists() and not file.part.exists()
  kept = file.path.with_name('b.bin.bad')
  assert kept.read_bytes() == CONTENT


def test_a_wrong_answer_is_fetched_once_more(server, tmp_path):
  server.files['a/b.bin'] = [CONTENT[::-1], CONTENT]
  file = _file(server, tmp_path, digest=SHA256)
  download.download([file])
  assert file.path.read_bytes() == CONTENT
  names = sorted(path.name for path in file.path.parent.iterdir())
  assert names == ['.b.bin.verified', 'b.bin']


def test_a_wrong_file_of_the_user_is_set_aside(server, tmp_path):
  file = _file(server, tmp_path, digest=SHA256)
  file.path.parent.mkdir()
  for count in (1, 2):
    file.path.write_bytes(b'mine')
    download.download([file])
    assert file.path.read_bytes() == CONTENT
    kept = sorted(file.path.parent.glob('b.bin.bad*'))
    assert [path.read_bytes() for path in kept] == [b'mine'] * count


def test_a_right_file_of_the_user_is_taken(server, tmp_path):
  file = _file(server, tmp_path, digest=SHA256)
  file.path.parent.mkdir()
  file.path.write_bytes(CONTENT)
  download.download([file])
  assert not server.requests


def test_another_size_than_expected_is_refused_at_once(server, tmp_path):
  file = _file(server, tmp_path, size=5)
  with pytest.raises(download.DownloadError, match='300000 bytes, expected 5'):
    download.download([file])
  assert not file.part.exists()


def test_uses_the_checksum_of_a_google_bucket(server, tmp_path):
  right = base64.b64encode(hashlib.md5(CONTENT).digest()).decode()
  server.headers['a/b.bin'] = {'x-goog-hash': f'crc32c=AAAAAA==,md5={right}'}
  download.download([_file(server, tmp_path)])
  wrong = base64.b64encode(bytes(16)).decode()
  server.headers['a/b.bin'] = {'x-goog-hash': f'md5={wrong}'}
  with pytest.raises(download.DownloadError, match='md5 sum'):
    download.download([_file(server, tmp_path / 'other')])


def test_every_failure_is_reported_and_the_rest_arrives(server, tmp_path):
  files = [
    download.File(f'{server.url}/{name}', tmp_path / name)
    for name in ('a/b.bin', 'no', 'nowhere')
  ]
  with pytest.raises(download.DownloadError) as caught:
    download.download(files)
  for line, name in zip(str(caught.value).splitlines(), ('no', 'nowhere')):
    assert line == f'{server.url}/{name}: HTTP Error 404: Not Found.'
  assert (tmp_path / 'a' / 'b.bin').read_bytes() == CONTENT


def test_an_unreachable_server_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(transfer, '_BACKOFF_SECONDS', 0.01)
  with file_server.serve({}) as closed:
    pass
  file = download.File(f'{closed.url}/x', tmp_path / 'x')
  with pytest.raises(
    download.DownloadError, match=f'{closed.url}/x: .*refused'
  ):
    download.download([file])


def test_progress_is_printed(server, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(progress, '_SECONDS_IN_LOG', 0)
  file = _file(server, tmp_path, len(CONTENT), SHA256)
  download.download([file])
  lines = capsys.readouterr().out.splitlines()
  assert lines[-2].startswith('300 kB of 300 kB, ')
  assert lines[-2].endswith('/s, 0 min left')
  assert lines[-1] == f'{file.path} is complete and verified.'


@pytest.mark.parametrize(
  'count, text',
  [(0, '0 bytes'), (999, '999 bytes'), (1234, '1.23 kB'), (27e9, '27.0 GB')],
)
def test_sizes_for_people(count, text):
  assert progress.size_text(count) == text
