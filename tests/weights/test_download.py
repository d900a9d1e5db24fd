"""Weights by name, downloaded from a local server."""

import hashlib
import re

import file_server
import numpy as np
import pytest

from maskrcnn_jax.cli import main as command
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import download, external, published, tensor_files

NAME = 'torchvision/drawn'
FILE = 'drawn-12345678.pth'


@pytest.fixture(name='content', scope='module')
def fixture_content(tmp_path_factory):
  """A weight file, larger than what a socket buffers."""
  path = tmp_path_factory.mktemp('published') / 'weights.pth'
  values = np.random.default_rng(0).random(2**18, np.float32)
  tensor_files.write(path, {'conv1.weight': values})
  return path.read_bytes()


@pytest.fixture(name='server')
def fixture_server(content, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  with file_server.serve({FILE: content}) as server:
    yield server


@pytest.fixture(name='publish')
def fixture_publish(server, content, monkeypatch):
  """Function that publishes the file with a checksum, under `NAME`."""

  def publish(checksum=None, url=f'{server.url}/{FILE}'):
    if checksum is None:
      checksum = f'sha256:{hashlib.sha256(content).hexdigest()[:8]}'
    weights = published.Weights(NAME, url, 'none', checksum)
    monkeypatch.setitem(published.TABLE, NAME, weights)
    return weights

  return publish


def left(folder):
  return [x.name for x in folder.rglob('*') if x.is_file()]


@pytest.mark.parametrize('algorithm', ['sha256', 'md5', ''])
def test_a_file_is_downloaded_once(
  server, publish, content, tmp_path, algorithm, caplog
):
  digest = algorithm and hashlib.new(algorithm, content).hexdigest()[:6]
  weights = publish(algorithm and f'{algorithm}:{digest}')
  path = download.local(NAME)
  assert path == tmp_path / 'maskrcnn_jax/weights' / NAME / FILE
  assert path == download.cached(weights)
  assert path.read_bytes() == content
  # Without a network, too.
  server.files.clear()
  assert download.local(NAME) == path
  assert server.requests == [('GET', FILE, None)]
  assert left(tmp_path) == [FILE]
  warned = [x for x in caplog.records if x.levelname == 'WARNING']
  assert [NAME in x.getMessage() for x in warned] == [True] * (not algorithm)


def test_a_wrong_checksum(server, publish, content, tmp_path):
  weights = publish('sha256:00000000')
  with pytest.raises(UserError) as error:
    download.local(NAME)
  assert error.value.given == f'sha256:{hashlib.sha256(content).hexdigest()}'
  assert error.value.wanted == 'sha256:00000000'
  assert error.value.path == str(download.cached(weights))
  assert weights.url in str(error.value)
  assert left(tmp_path) == []


def test_a_connection_that_is_cut_is_tried_again(
  server, publish, content, tmp_path
):
  publish()
  server.cuts[FILE] = [1000, 0]
  assert download.local(NAME).read_bytes() == content
  assert len(server.requests) == 3
  assert left(tmp_path) == [FILE]


@pytest.mark.parametrize('checksum', [None, ''])
def test_a_connection_that_is_always_cut(server, publish, tmp_path, checksum):
  weights = publish(checksum)
  server.cuts[FILE] = [1000] * 9
  with pytest.raises(UserError) as error:
    download.local(NAME)
  assert (error.value.item, error.value.given) == (NAME, weights.url)
  assert left(tmp_path) == []
  # A later call begins anew.
  server.cuts[FILE] = []
  assert download.local(NAME).is_file()


@pytest.mark.parametrize('status, requests', [(503, 3), (404, 1)])
def test_a_server_that_refuses(server, publish, tmp_path, status, requests):
  publish()
  server.refusals[FILE] = [status] * 9
  with pytest.raises(UserError) as error:
    download.local(NAME)
  assert str(status) in str(error.value)
  assert len(server.requests) == requests
  assert left(tmp_path) == []


def test_without_a_network_the_file_can_be_put_there(
  publish, content, tmp_path
):
  with file_server.serve({}) as closed:
    url = f'{closed.url}/{FILE}'
  weights = publish(url=url)
  with pytest.raises(UserError) as error:
    external.read(NAME)
  place = download.cached(weights)
  assert error.value.path == str(place)
  assert url in str(error.value) and str(place) in str(error.value)
  assert left(tmp_path) == []
  place.parent.mkdir(parents=True, exist_ok=True)
  place.write_bytes(content)
  assert download.local(NAME) == place
  # Another file is noticed, and stays.
  place.write_bytes(b'another')
  with pytest.raises(UserError) as error:
    download.local(NAME)
  assert error.value.path == str(place)
  assert error.value.wanted == weights.checksum
  assert place.read_bytes() == b'another'


@pytest.mark.parametrize('sent', [b'<html>Sign in</html>', 'half'])
def test_without_a_checksum_the_file_is_read(
  server, publish, content, tmp_path, sent
):
  weights = publish('')
  server.files[FILE] = content[: len(content) // 2] if sent == 'half' else sent
  with pytest.raises(UserError) as error:
    download.local(NAME)
  assert (error.value.item, error.value.given) == (NAME, weights.url)
  assert left(tmp_path) == []


def test_what_is_not_a_name_is_a_path(publish, tmp_path, monkeypatch, server):
  monkeypatch.chdir(tmp_path)
  for path in ('weights.pth', 'runs/own', tmp_path / 'x.pth'):
    assert download.local(path) == path
  publish()
  with pytest.raises(UserError) as error:
    download.local('torchvision/drawm')
  assert error.value.given == 'torchvision/drawm'
  assert NAME in str(error.value)
  # A file of one's own that has the name wins.
  (tmp_path / NAME).parent.mkdir()
  (tmp_path / NAME).write_bytes(b'mine')
  assert download.local(NAME) == NAME
  assert not server.requests


def test_weights_of_the_script(server):
  with pytest.raises(UserError) as error:
    download.local('google/resnet50_imagenet')
  assert error.value.item == 'google/resnet50_imagenet'
  assert published.SCRIPT in str(error.value)


def test_the_table_is_consistent():
  assert len(published.TABLE) == len(published._ALL)
  for name, weights in published.TABLE.items():
    assert weights.url.startswith('https://'), name
    if weights.checksum:
      digest = re.fullmatch(
        '(?:sha256:([0-9a-f]{8})|md5:([0-9a-f]{6}))', weights.checksum
      )
      if name.startswith('mae/'):
        continue  # Its README has the digits.
      # The file has the digits in its name.
      assert re.search(rf'[-_]{digest[1] or digest[2]}\.\w+$', weights.url), (
        name
      )
  torchvision = published.TABLE['torchvision/maskrcnn_resnet50_fpn_coco']
  assert torchvision.url == (
    'https://download.pytorch.org/models/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth'
  )
  assert torchvision.score == '37.9 / 34.6'
  name = 'COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x'
  assert published.TABLE[f'detectron2/{name}'].url == (
    'https://dl.fbaipublicfiles.com/detectron2/'
    f'{name}/137849600/model_final_f10217.pkl'
  )


def test_the_command_lists_and_downloads(server, publish, capsys):
  weights = publish()
  assert command.main(['weights', f'--download={NAME}']) == 0
  assert capsys.readouterr().out == f'{download.cached(weights)}\n'
  assert command.main(['weights']) == 0
  rows = {
    row[0]: row
    for line in capsys.readouterr().out.splitlines()
    if len(row := re.split(r' +\| +', line.strip('| '))) >= 5
  }
  for name, weights in published.TABLE.items():
    row = rows[name]
    assert (weights.licence or 'not stated') in row
    assert weights.by_script or (weights.checksum or 'not known') in row
    assert (row[-1] == 'yes') == (name == NAME)
  name = 'torchvision/maskrcnn_resnet50_fpn_v2_coco'
  assert rows[name][1:3] == ['177', '47.4 / 41.8']
  assert command.main(['weights', '--download=timm/resnet50.a4_in1k']) == 2
  assert 'timm/resnet50.a4_in1k' in capsys.readouterr().err
