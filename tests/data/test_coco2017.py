"""COCO 2017 from a server of this machine to records."""

import hashlib
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import coco2017
import coco_archives
import curl
import example_records
import file_server
import golden_files
import pytest
import small_disk
import tensorflow as tf

from maskrcnn_jax.datasets import records
from maskrcnn_jax.errors import UserError

SCRIPT = pathlib.Path(coco2017.__file__).with_name(
  'download_and_preprocess_coco.sh'
)
pytestmark = pytest.mark.skipif(
  not all(map(shutil.which, coco2017._PROGRAMS)), reason='needs curl and unzip'
)
TRAIN = 'zips/train2017.zip'
ARCHIVES = coco_archives.make()


@pytest.fixture
def server(tmp_path, monkeypatch):
  """Serves COCO, and points the command at it."""
  monkeypatch.setattr(curl, '_BACKOFF_SECONDS', 0.01)
  monkeypatch.setenv('DOWNLOAD_BACKOFF_SECONDS', '0.05')
  monkeypatch.setenv('PYTHON', sys.executable)
  with file_server.serve(ARCHIVES) as served:
    monkeypatch.setenv('COCO_URL', served.url)
    _use_table(monkeypatch, tmp_path, coco_archives.table(ARCHIVES))
    yield served


def _use_table(monkeypatch, tmp_path, text):
  (tmp_path / 'files.txt').write_text(f'# Made by a test.\n\n{text}\n')
  monkeypatch.setenv('COCO_FILES', str(tmp_path / 'files.txt'))


def _main(folder, *stages):
  coco2017.main([str(folder), *stages])


def _script(*arguments):
  command = ['bash', str(SCRIPT), *map(str, arguments)]
  return subprocess.run(command, capture_output=True, text=True)


def _visible(folder):
  """Names of the files that a user sees, without the records."""
  return {
    str(path.relative_to(folder))
    for path in folder.rglob('[!.]*')
    if path.is_file() and path.suffix != '.tfrecord'
  }


EXPECTED = (
  {f'annotations/{name}' for name in coco_archives.JSON_FILES}
  | {f'raw-data/{path.rpartition("/")[2]}' for path in ARCHIVES}
  | {
    f'raw-data/{split}2017/{coco_archives.file_name(split, k)}'
    for split, count in coco_archives.NUM_IMAGES.items()
    for k in range(count)
  }
)


@pytest.mark.slow
def test_script_makes_everything_and_then_nothing(server, tmp_path):
  folder = tmp_path / 'a b' / 'coco'
  server.cuts[TRAIN] = [1000, 2000]
  done = _script(folder)
  assert done.returncode == 0, done.stderr
  assert _visible(folder) == EXPECTED
  for path, content in ARCHIVES.items():
    assert (folder / 'raw-data' / path.split('/')[1]).read_bytes() == content
  index = records.index_records(f'{folder}/train-*.tfrecord')
  assert [pathlib.Path(file).name for file in index.files] == [
    f'train-{k:05d}-of-00005.tfrecord' for k in range(5)
  ]
  assert list(index.image_ids) == list(range(100, 105))
  assert len(records.index_records(f'{folder}/val-*.tfrecord')) == 3
  record = records.read_record(index, 1)
  features = tf.train.Example.FromString(record).features.feature
  captions = features['image/caption'].bytes_list.value
  assert list(captions) == [b'rings on picture 1', b'squares on picture 1']

  server.requests.clear()
  times = {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
  again = _script(folder)
  assert again.returncode == 0, again.stderr
  assert not server.requests
  assert 'Extracting' not in again.stdout and 'Writing' not in again.stdout
  del times[folder / 'raw-data' / '.lock']
  for path, written in times.items():
    assert path.stat().st_mtime_ns == written, path


def test_usage(tmp_path):
  done = _script()
  assert done.returncode == 2 and not done.stdout
  assert 'download_and_preprocess_coco.sh' in done.stderr
  done = _script(tmp_path / 'new', 'dowload')
  assert done.returncode == 2 and "'dowload'" in done.stderr
  assert not (tmp_path / 'new').exists()


def test_stages_alone(server, tmp_path):
  folder = tmp_path / 'coco'
  missing = {'extract': 'raw-data/train2017.zip', 'val': 'raw-data/val2017'}
  for stage, name in missing.items():
    with pytest.raises(UserError) as error:
      _main(folder, stage)
    assert error.value.path == str(folder / name)
  _main(folder, 'download')
  assert _visible(folder) == {x for x in EXPECTED if x.endswith('.zip')}
  _main(folder, 'extract')
  assert _visible(folder) == EXPECTED
  assert len(server.requests) == 5
  # A zip that was removed after it was extracted is not missed.
  (folder / 'raw-data' / 'train2017.zip').unlink()
  _main(folder, 'download', 'extract')
  assert len(server.requests) == 5


def test_a_lost_file_is_extracted_again_and_others_stay(server, tmp_path):
  folder = tmp_path / 'coco'
  _main(folder, 'extract', 'download')
  images = folder / 'raw-data' / 'train2017'
  first, second = images / '000000000100.jpg', images / '000000000101.jpg'
  content = first.read_bytes()
  first.unlink()
  changed = second.read_bytes()[::-1]
  second.write_bytes(changed)
  _main(folder, 'extract')
  assert first.read_bytes() == content and second.read_bytes() == changed


def test_corrupt_zip_is_named_and_downloaded_again(server, tmp_path, capsys):
  bad = coco_archives.corrupt(ARCHIVES[TRAIN])
  server.files[TRAIN] = [bad, ARCHIVES[TRAIN]]
  _main(tmp_path / 'coco', 'download')
  found = hashlib.sha256(bad).hexdigest()
  printed = capsys.readouterr().out
  assert f'train2017.zip.part (from {server.url}/{TRAIN})' in printed
  assert found in printed and hashlib.sha256(ARCHIVES[TRAIN]).hexdigest() in (
    printed
  )
  assert len(server.requests) == 6


def test_corrupt_zip_without_a_known_checksum(server, tmp_path, monkeypatch):
  _use_table(monkeypatch, tmp_path, coco_archives.table(ARCHIVES, False))
  server.files[TRAIN] = coco_archives.corrupt(ARCHIVES[TRAIN])
  done = _script(tmp_path / 'coco', 'download')
  assert done.returncode == 1
  folder = tmp_path / 'coco' / 'raw-data'
  assert f'{folder}/train2017.zip.part' in done.stderr
  assert 'train2017/000000000100.jpg' in done.stderr
  assert f'{folder}/train2017.zip.bad' in done.stderr
  assert len(server.requests) == 6
  assert not (folder / 'train2017.zip').exists()
  assert (folder / 'val2017.zip').exists()


def test_zip_that_goes_bad_on_the_disk(server, tmp_path, capsys):
  folder = tmp_path / 'coco'
  _main(folder, 'download')
  path = folder / 'raw-data' / 'train2017.zip'
  bad = coco_archives.corrupt(ARCHIVES[TRAIN])
  path.write_bytes(bad)
  curl.mark_verified(path)  # As if it had happened unseen.
  _main(folder, 'extract')
  printed = capsys.readouterr().out
  assert str(path) in printed and 'train2017/000000000100.jpg' in printed
  assert path.with_name('train2017.zip.bad').read_bytes() == bad
  assert path.read_bytes() == ARCHIVES[TRAIN]
  assert (folder / 'raw-data' / 'train2017' / '000000000100.jpg').exists()


def test_too_little_space_is_refused_before_any_request(
  server, tmp_path, monkeypatch
):
  text = coco_archives.table(ARCHIVES)
  huge = text.replace(f' {len(ARCHIVES[TRAIN])} ', f' {10**15} ')
  _use_table(monkeypatch, tmp_path, huge)
  with pytest.raises(UserError) as error:
    _main(tmp_path / 'coco')
  assert error.value.wanted > 3 * 10**15 > error.value.given
  for stage in ('download 1000000.0 GB', 'extract', 'train', 'val'):
    assert stage in str(error.value)
  assert not server.requests


@pytest.mark.parametrize(
  'recording',
  golden_files.files('13_tfrecord_*_expected.npz'),
  ids=lambda path: path.stem,
)
def test_train_writes_the_records_of_the_reference(
  recording, tmp_path, monkeypatch
):
  """All features, captions among them, as its converter wrote them."""
  monkeypatch.setattr(os, 'cpu_count', lambda: 1)
  recorded = golden_files.load(recording)
  images = tmp_path / 'raw-data' / 'train2017'
  images.mkdir(parents=True)
  (tmp_path / 'annotations').mkdir()
  for name, key in (('instances', 'annotations'), ('captions', 'captions')):
    path = tmp_path / 'annotations' / f'{name}_train2017.json'
    path.write_text(str(recorded[f'{key}_json']))
  entries = json.loads(str(recorded['annotations_json']))['images']
  for row, entry in enumerate(entries):
    encoded = recorded[f'coco_image_bytes_{row}'].tobytes()
    (images / entry['file_name']).write_bytes(encoded)
  _main(tmp_path, 'train')
  pattern = f'{tmp_path}/train-?????-of-0000{len(entries)}.tfrecord'
  theirs = str(recording).replace('_expected.npz', '.tfrecord')
  ours, theirs = map(example_records.features, (pattern, theirs))
  assert ours == theirs


def test_a_table_with_a_bad_line_is_named(server, tmp_path, monkeypatch):
  _use_table(monkeypatch, tmp_path, 'zips/train2017.zip 12 md6:00')
  with pytest.raises(UserError) as error:
    _main(tmp_path / 'coco')
  assert error.value.path == str(tmp_path / 'files.txt')
  assert error.value.given == 'zips/train2017.zip 12 md6:00'


def test_full_disk_while_downloading(server, tmp_path, monkeypatch):
  _use_table(monkeypatch, tmp_path, coco_archives.table(ARCHIVES, False))
  with small_disk.mounted(tmp_path / 'disk', 2**20) as disk:
    _main(disk, 'download')
    for path in (disk / 'raw-data').glob('*train2017.zip*'):
      path.unlink()
    server.requests.clear()
    part = disk / 'raw-data' / 'train2017.zip.part'
    with (
      small_disk.nearly_full(disk, 2 * small_disk.PAGE),
      pytest.raises(UserError, match=str(part)),
    ):
      _main(disk, 'download')
    have = part.stat().st_size
    assert 0 < have < len(ARCHIVES[TRAIN])
    _main(disk, 'download')
    assert [asked for *_, asked in server.requests] == [None, f'bytes={have}-']
    zip_file = disk / 'raw-data' / 'train2017.zip'
    assert zip_file.read_bytes() == ARCHIVES[TRAIN]


@pytest.mark.slow
def test_full_disk_while_extracting_and_converting(
  server, tmp_path, monkeypatch
):
  _use_table(monkeypatch, tmp_path, coco_archives.table(ARCHIVES, False))
  with small_disk.mounted(tmp_path / 'disk', 2**20) as disk:
    _main(disk, 'download')
    for stage, name in (('extract', '.train2017.zip'), ('train', 'train-0000')):
      with small_disk.nearly_full(disk, 2 * small_disk.PAGE):
        done = _script(disk, stage)
      assert done.returncode == 1
      assert f'The disk is full: {disk}' in done.stderr
      assert name in done.stderr.splitlines()[-1]
      assert not list(disk.rglob('*unfinished*'))
      _main(disk, stage)
    assert len(records.index_records(f'{disk}/train-*.tfrecord')) == 5


def test_ctrl_c_does_not_wait_for_the_network(server, tmp_path):
  server.stalls[TRAIN] = 5000
  folder = tmp_path / 'coco'
  command = ['bash', str(SCRIPT), str(folder), 'download']
  process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
  part = folder / 'raw-data' / 'train2017.zip.part'
  deadline = time.monotonic() + 30
  while not curl.size_of(part) and time.monotonic() < deadline:
    time.sleep(0.02)
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate(timeout=30)
  assert process.returncode == 130 and 'Traceback' not in errors
  del server.stalls[TRAIN]
  have = part.stat().st_size
  assert 0 < have <= 5000
  _main(folder, 'download')
  assert ('GET', TRAIN, f'bytes={have}-') in server.requests


def test_two_runs_at_a_time_are_refused(server, tmp_path):
  (tmp_path / 'coco' / 'raw-data').mkdir(parents=True)
  folder = tmp_path / 'coco' / 'raw-data'
  with coco2017.only_run(folder), pytest.raises(UserError) as error:
    _main(tmp_path / 'coco', 'download')
  assert error.value.path == str(folder)


def test_half_a_set_of_records_is_refused(server, tmp_path):
  folder = tmp_path / 'coco'
  _main(folder, 'download', 'extract')
  (folder / 'val-00001-of-00003.tfrecord').touch()
  with pytest.raises(UserError) as error:
    _main(folder, 'val')
  assert error.value.path == str(folder / 'val-00001-of-00003.tfrecord')


@pytest.mark.parametrize('needs', ['_PROGRAMS', '_PACKAGES'])
def test_programs_and_packages_are_checked_before_the_download(
  needs, server, tmp_path, monkeypatch
):
  there = {'_PROGRAMS': 'bash', '_PACKAGES': 'os'}[needs]
  monkeypatch.setattr(coco2017, needs, (there, 'none_such'))
  with pytest.raises(UserError) as error:
    _main(tmp_path / 'coco', 'download', 'val')
  assert error.value.item == 'none_such'
  assert not server.requests and not (tmp_path / 'coco').exists()


def test_sizes_and_checksums_are_those_of_tensorflow_datasets(tmp_path):
  package = importlib.util.find_spec('tensorflow_datasets').origin
  table = pathlib.Path(package).parent / 'url_checksums' / 'coco.txt'
  published = {}
  for line in table.read_text().splitlines():
    url, size, digest, *_ = line.split('\t')
    published[url] = int(size), f'sha256:{digest}'
  archives = coco2017.list_archives(
    tmp_path, 'http://images.cocodataset.org', coco2017.FILES
  )
  assert len(archives) == 5
  for archive in archives:
    assert (archive.size, archive.digest) == published[archive.url]


def test_the_script_takes_the_interpreter_that_is_named(tmp_path, monkeypatch):
  monkeypatch.setenv('PYTHON', str(tmp_path / 'none'))
  done = _script(tmp_path)
  assert done.returncode == 1 and str(tmp_path / 'none') in done.stderr
