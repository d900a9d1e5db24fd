"""Backbones from a server of this machine, with tensors of a few numbers."""

import io
import pathlib
import subprocess
import sys
import time
import zipfile

import file_server
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_checkpoint

FOLDER = pathlib.Path(__file__).parents[2] / 'data'
SCRIPT = FOLDER / 'download_pretrained_weights.sh'
sys.path.insert(0, str(FOLDER))

import extract_backbone  # noqa: E402
import pretrained_weights  # noqa: E402
import transfer  # noqa: E402

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
  """Contents by path of a checkpoint, and its tensors."""
  prefix = folder / path.replace('/', '_')
  tensors = _save(prefix, names)
  contents = {
    f'{path}{file.name.removeprefix(prefix.name)}': file.read_bytes()
    for file in folder.glob(f'{prefix.name}.*')
  }
  return contents, tensors


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """What is served, and the tensors of Mask R-CNN."""
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
  monkeypatch.setattr(transfer, '_BACKOFF_SECONDS', 0.01)
  monkeypatch.setenv('PYTHON', sys.executable)
  with file_server.serve(published[0]) as served:
    monkeypatch.setenv('WEIGHTS_URL', served.url)
    monkeypatch.setenv('NVIDIA_WEIGHTS_URL', f'{served.url}/ngc/zip')
    yield served


def _main(folder, *flags):
  pretrained_weights.main([str(folder), *flags])


def test_names_of_the_backbone():
  written = tensorflow_checkpoint.google_backbone(50, 4)
  assert set(written) == set(extract_backbone.tpu_names())
  for names in (extract_backbone.tpu_names(), extract_backbone.nvidia_names()):
    assert len(set(names)) == len(names) == 265


def test_layout_and_extracted_backbone(server, published, tmp_path):
  server.cuts[f'{RESNET}.data-00000-of-00001'] = [500, 500]
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


def test_a_cut_zip_of_nvidia_is_named(server, tmp_path):
  content = server.files['ngc/zip']
  server.files['ngc/zip'] = content[: len(content) // 2]
  with pytest.raises(transfer.DownloadError, match='is a damaged zip file'):
    _main(tmp_path, '--nvidia')


def test_missing_tensors_are_named(server, tmp_path):
  files, _ = _checkpoint_files(
    tmp_path, RESNET, extract_backbone.tpu_names()[:-3]
  )
  server.files |= files
  with pytest.raises(
    transfer.DownloadError, match=r'lacks 3 of 265 .* Move it away'
  ):
    _main(tmp_path / 'weights')


def test_a_damaged_tensor_is_found_by_its_crc(server, tmp_path):
  path = f'{VARIABLES}.data-00000-of-00001'
  content = bytearray(server.files[path])
  content[3000] ^= 0xFF
  server.files[path] = bytes(content)
  with pytest.raises(transfer.DownloadError, match='is no whole checkpoint'):
    _main(tmp_path)
  extracted = tmp_path / 'resnet' / 'extracted_from_maskrcnn'
  assert not extracted.exists()


def test_extraction_as_a_command(published, tmp_path, capsys):
  names = [f'resnet50/{name}' for name in extract_backbone.tpu_names()]
  _save(tmp_path / 'model', names)
  command = ['--checkpoint', tmp_path / 'model', '--save_to', tmp_path / 'cut']
  command = list(map(str, command))
  assert extract_backbone.main(command) == 0
  assert 'Wrote 265 tensors' in capsys.readouterr().out
  assert extract_backbone.main(command) == 1
  assert 'cut.index exists' in capsys.readouterr().err
  command[1] = str(tmp_path / 'none')
  command[3] = str(tmp_path / 'other')
  assert extract_backbone.main(command) == 1
  assert 'is no whole checkpoint' in capsys.readouterr().err
