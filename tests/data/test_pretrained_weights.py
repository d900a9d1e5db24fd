"""Downloads of backbones from a local server, with tiny tensors."""

import base64
import hashlib
import io
import pathlib
import subprocess
import sys
import time
import zipfile

import extract_backbone
import file_server
import numpy as np
import pooch
import pretrained_weights
import pytest
import tensorflow as tf
import tensorflow_checkpoint

SCRIPT = pathlib.Path(pretrained_weights.__file__).with_name(
  'download_pretrained_weights.sh'
)

RESNET = 'retinanet/resnet50-checkpoint-2018-02-07/model.ckpt-112603'
VARIABLES = 'mask-rcnn/1555659850/variables/variables'


def _save(prefix, names):
  """Writes a checkpoint; returns its tensors."""
  rng = np.random.default_rng(len(names))
  tensors = {x: rng.random((2, 3), np.float32) for x in names}
  tensorflow_checkpoint.write_named(prefix, tensors)
  return tensors


def _read(prefix):
  reader = tf.train.load_checkpoint(str(prefix))
  names = reader.get_variable_to_shape_map()
  return {name: reader.get_tensor(name) for name in names}


def _checkpoint_files(folder, path, names):
  """Content by path of a checkpoint, and its tensors."""
  prefix = folder / path.replace('/', '_')
  tensors = _save(prefix, names)
  contents = {
    f'{path}{file.name.removeprefix(prefix.name)}': file.read_bytes()
    for file in folder.glob(f'{prefix.name}.*')
  }
  return contents, tensors


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """The served files, and the tensors of Mask R-CNN."""
  folder = tmp_path_factory.mktemp('published')
  names = extract_backbone.tpu_names()
  files, _ = _checkpoint_files(folder, RESNET, [*names, 'dense/kernel'])
  scoped = [f'resnet50/{name}' for name in names]
  more, tensors = _checkpoint_files(
    folder, VARIABLES, [*scoped, 'fpn/l2/kernel', 'global_step']
  )
  files |= more
  files[f'{RESNET}.meta'] = b'graph'
  files[f'{RESNET.rpartition("/")[0]}/checkpoint'] = (
    b'model_checkpoint_path: "x"'
  )
  files['mask-rcnn/1555659850/saved_model.pb'] = b'saved model'
  nvidia, _ = _checkpoint_files(
    folder, 'nvidia_rn50_tf_amp', extract_backbone.nvidia_names()
  )
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, 'w') as archive:
    for name, content in nvidia.items():
      archive.writestr(name, content)
  files['ngc/zip'] = stream.getvalue()
  return files, tensors


@pytest.fixture
def server(published, monkeypatch):
  # Pooch waits seconds between its tries.
  monkeypatch.setattr(pooch.core.time, 'sleep', lambda seconds: None)
  monkeypatch.setenv('PYTHON', sys.executable)
  with file_server.serve(published[0]) as served:
    monkeypatch.setenv('WEIGHTS_URL', served.url)
    monkeypatch.setenv('NVIDIA_WEIGHTS_URL', f'{served.url}/ngc/zip')
    yield served


def _md5(content):
  digest = base64.b64encode(hashlib.md5(content).digest()).decode()
  return {'x-goog-hash': f'crc32c=AAAAAA==, md5={digest}'}


def _main(folder, *flags, expected=0):
  assert pretrained_weights.main([str(folder), *flags]) == expected


def test_names_of_the_backbone():
  written = tensorflow_checkpoint.google_backbone(50, 4)
  assert set(written) == set(extract_backbone.tpu_names())
  for names in (extract_backbone.tpu_names(), extract_backbone.nvidia_names()):
    assert len(set(names)) == len(names) == 265


def test_layout_and_extracted_backbone(server, published, tmp_path):
  for path, content in published[0].items():
    server.headers[path] = _md5(content)
  server.cuts[f'{RESNET}.data-00000-of-00001'] = [500, 500]
  # The first answer has other bytes than the checksum states.
  index = f'{RESNET}.index'
  server.files[index] = [b'wrong', published[0][index]]
  _main(tmp_path)
  for path, content in published[0].items():
    place = path.replace('retinanet/resnet50-checkpoint', 'resnet/resnet-nhwc')
    if path != 'ngc/zip':
      assert (tmp_path / place).read_bytes() == content
  resnet = tmp_path / 'resnet'
  assert sorted(path.name for path in resnet.iterdir()) == [
    'extracted_from_maskrcnn',
    'resnet-nhwc-2018-02-07',
    'resnet-nhwc-2018-10-14',
  ]
  extracted = resnet / 'extracted_from_maskrcnn'
  assert {path.name for path in extracted.iterdir()} == {
    'checkpoint',
    'resnet50.ckpt.data-00000-of-00001',
    'resnet50.ckpt.index',
  }
  assert tf.train.latest_checkpoint(extracted) == str(
    extracted / 'resnet50.ckpt'
  )
  found = _read(extracted / 'resnet50.ckpt')
  expected = {
    name[9:]: value
    for name, value in published[1].items()
    if name.startswith('resnet50/')
  }
  assert found.keys() == expected.keys() == set(extract_backbone.tpu_names())
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value)
  assert not (tmp_path / 'rn50_tf_amp_ckpt_v20.06.0').exists()


def test_script_does_nothing_a_second_time(server, tmp_path):
  _main(tmp_path, '--nvidia')
  server.requests.clear()
  start = time.monotonic()
  command = ['bash', str(SCRIPT), '--nvidia', str(tmp_path)]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert time.monotonic() - start < 2.5  # A fraction of it, if left alone.
  assert done.stdout == f'{tmp_path}: done.\n'
  assert not server.requests


@pytest.mark.slow
def test_default_folder_and_usage(server, tmp_path):
  done = subprocess.run(
    ['bash', str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'weights' / 'resnet' / 'extracted_from_maskrcnn').is_dir()
  done = subprocess.run(
    ['bash', str(SCRIPT), '--amd'], capture_output=True, text=True
  )
  assert done.returncode == 2 and 'usage: download_pretrained' in done.stderr


def test_nvidia_checkpoint(server, tmp_path):
  _main(tmp_path, '--nvidia')
  found = _read(tmp_path / 'rn50_tf_amp_ckpt_v20.06.0' / 'nvidia_rn50_tf_amp')
  assert len(found) == 265


def _names(folder):
  return sorted(x.relative_to(folder).as_posix() for x in folder.rglob('*'))


def test_a_truncated_zip(server, tmp_path, capsys):
  content = server.files['ngc/zip']
  server.files['ngc/zip'] = content[: len(content) // 2]
  _main(tmp_path, '--nvidia', expected=1)
  assert 'zip' in capsys.readouterr().err
  assert not [x for x in _names(tmp_path) if 'rn50' in x]
  server.files['ngc/zip'] = content
  _main(tmp_path, '--nvidia')


def test_a_file_with_a_wrong_checksum(server, tmp_path, capsys):
  path = f'{RESNET}.meta'
  server.headers[path] = _md5(b'another file')
  _main(tmp_path, expected=1)
  assert f'{RESNET.rpartition("/")[2]}.meta' in capsys.readouterr().err
  asked = [x for _, x, _ in server.requests if x == path]
  assert len(asked) == 1 + pretrained_weights._TRIES  # The first is HEAD.
  assert _names(tmp_path) == ['resnet']


def test_a_connection_that_is_always_cut(server, tmp_path, capsys):
  server.cuts[f'{RESNET}.meta'] = [1] * 10
  _main(tmp_path, expected=1)
  assert capsys.readouterr().err
  assert _names(tmp_path) == ['resnet']


def test_a_missing_file(server, tmp_path, capsys):
  del server.files['mask-rcnn/1555659850/saved_model.pb']
  _main(tmp_path, expected=1)
  assert 'saved_model.pb' in capsys.readouterr().err
  assert not [x for x in _names(tmp_path) if '1555659850' in x]


def test_missing_tensors_are_named(server, tmp_path, capsys):
  names = extract_backbone.tpu_names()
  files, _ = _checkpoint_files(tmp_path, RESNET, names[:-3])
  server.files |= files
  _main(tmp_path / 'weights', expected=1)
  error = capsys.readouterr().err
  assert names[-3] in error and '3 of 265' in error
  assert _names(tmp_path / 'weights') == ['resnet']


def test_a_corrupt_tensor_is_found_by_its_crc(server, tmp_path, capsys):
  path = f'{VARIABLES}.data-00000-of-00001'
  content = bytearray(server.files[path])
  content[3000] ^= 0xFF
  server.files[path] = bytes(content)
  _main(tmp_path, expected=1)
  assert 'variables/variables' in capsys.readouterr().err
  assert not (tmp_path / 'resnet' / 'extracted_from_maskrcnn').exists()
  assert not [*(tmp_path / 'mask-rcnn').iterdir()]


def test_an_incomplete_folder_is_kept(server, tmp_path, capsys):
  mine = tmp_path / 'resnet' / 'resnet-nhwc-2018-02-07' / 'mine.txt'
  mine.parent.mkdir(parents=True)
  mine.write_text('mine')
  _main(tmp_path, expected=1)
  assert str(mine.parent) in capsys.readouterr().err
  assert mine.read_text() == 'mine'
  assert not server.requests


def test_extraction_as_a_command(published, tmp_path, capsys):
  names = [f'resnet50/{name}' for name in extract_backbone.tpu_names()]
  _save(tmp_path / 'model', names)
  command = ['--checkpoint', tmp_path / 'model', '--save_to', tmp_path / 'cut']
  command = list(map(str, command))
  assert extract_backbone.main(command) == 0
  assert '265' in capsys.readouterr().out
  assert extract_backbone.main(command) == 1
  assert 'cut.index' in capsys.readouterr().err
  command[1] = str(tmp_path / 'none')
  command[3] = str(tmp_path / 'other')
  assert extract_backbone.main(command) == 1
  assert command[1] in capsys.readouterr().err
