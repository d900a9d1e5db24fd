"""A workdir from a stranger: nothing outside it is opened, nothing is huge."""

import json
import os
import shutil
import struct
import subprocess
import sys

import pytest
import tensorstore as ts
from job_process import environment
from tiny_checkpoint import assert_same, make_config, make_state, save

from maskrcnn_jax.checkpoints import containment, store
from maskrcnn_jax.errors import UserError

STATE = 'checkpoints/4/state'


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('saved')
  # Tensors of more than 1024 bytes lie in files of their own.
  save(workdir, config=make_config(), width=300)
  store.claim_workdir(workdir, make_config())
  return workdir


@pytest.fixture
def run(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / 'run')


def refusal(path, *arguments):
  with pytest.raises(UserError) as error:
    store.restore(path, *arguments)
  return error.value


@pytest.mark.parametrize(
  'name',
  [
    'checkpoints',
    'checkpoints/4',
    'checkpoints/4/config',
    'checkpoints/4/config/metadata',
    f'{STATE}/_METADATA',
    f'{STATE}/ocdbt.process_0/d',
    f'{STATE}/manifest.ocdbt',
  ],
)
def test_a_link_to_another_place_is_named(run, tmp_path, name):
  (run / name).rename(tmp_path / 'elsewhere')
  (run / name).symlink_to(tmp_path / 'elsewhere')
  error = refusal(run)
  assert isinstance(error, store.CorruptCheckpointError)
  assert error.path == str(run / name) or name == 'checkpoints'
  assert error.given.startswith(str(tmp_path / 'elsewhere'))
  # Also from the checkpoint itself, which the user may name by a link.
  if name.count('/') > 1:
    assert refusal(run / 'checkpoints/4').path == str(run / name)
  elif name == 'checkpoints/4':
    store.restore(run / name)


def test_links_inside_a_checkpoint_are_followed(run):
  path = run / 'checkpoints/4'
  (path / 'config/metadata').rename(path / 'metadata')
  (path / 'config/metadata').symlink_to(path / 'metadata')
  store.restore(run)


def test_a_pipe_is_not_opened(run):
  (run / 'checkpoints/4/config/metadata').unlink()
  os.mkfifo(run / 'checkpoints/4/config/metadata')
  assert refusal(run).path == str(run / 'checkpoints/4/config/metadata')


def test_config_json_may_be_a_link_inside_only(run, tmp_path):
  (run / 'config.json').rename(tmp_path / 'elsewhere')
  (run / 'config.json').symlink_to(tmp_path / 'elsewhere')
  with pytest.raises(UserError) as error:
    store.claimed_config(run)
  assert error.value.path == str(run / 'config.json')


@pytest.mark.parametrize(
  'name',
  [
    *('/etc/passwd', '../../config', 'a/../../b', '~/x', '..'),
    *('http://planted.invalid/x', 'gs://bucket/x', 'file:///etc/passwd'),
    'params.kernel|file:///etc/',
  ],
)
@pytest.mark.parametrize(
  'file', ['_METADATA', '_sharding', 'array_metadatas/process_0']
)
def test_a_name_of_another_place_is_refused(run, file, name):
  path = run / STATE / file
  text = path.read_text()
  path.write_text(json.dumps({'tree_metadata': {'x': [name]}}))
  error = refusal(run)
  assert (error.path, error.given) == (str(path), name)
  path.write_text(json.dumps({**json.loads(text), name: {}}))
  assert refusal(run).given == name


def crc32c(data):
  table = []
  for byte in range(256):
    for _ in range(8):
      byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    table.append(byte)
  crc = 2**32 - 1
  for byte in data:
    crc = table[(crc ^ byte) & 255] ^ crc >> 8
  return crc ^ 2**32 - 1


@pytest.mark.parametrize('place', ['../{}', '/tmp/{}', 'file://{}'])
def test_a_database_that_names_another_place_is_refused(run, place):
  """OCDBT: a manifest whose root lies elsewhere."""
  folder = run / STATE
  shutil.rmtree(folder / 'd')
  (folder / 'manifest.ocdbt').unlink()
  spec = {
    'driver': 'ocdbt',
    'base': f'file://{folder}/',
    'config': {'compression': None},
  }
  ts.KvStore.open(spec).result()['step/.zarray'] = b'{}'
  (node,) = (folder / 'd').iterdir()
  given = f'd/{node.name}'
  name = place.format('x' * len(given))[: len(given)]
  path = folder / 'manifest.ocdbt'
  data = path.read_bytes()[:-4].replace(given.encode(), name.encode())
  path.write_bytes(data + struct.pack('<I', crc32c(data)))
  error = refusal(run)
  assert (error.path, error.given) == (str(path), name)


def forget_checksums(run):
  """As if an older version had saved the checkpoint."""
  path = run / 'checkpoints/4/_CHECKPOINT_METADATA'
  path.write_text(path.read_text().replace('"health"', '"other"'))
  shutil.rmtree(run / 'checkpoints/4/health')


def test_tensors_that_only_claim_to_be_huge_are_refused(run):
  forget_checksums(run)
  folder = run / STATE
  database = ts.KvStore.open(f'file://{folder}/|ocdbt:').result()
  name = 'params.fpn.kernel/'
  array = json.loads(database[name + '.zarray'])
  array.update(shape=[2**20, 2**16], chunks=[2**20, 2**16])
  database[name + '.zarray'] = json.dumps(array).encode()
  error = refusal(run)
  assert error.path == str(folder)
  assert error.given > 2**38
  # A run that goes on compares the shapes with its own.
  with pytest.raises(UserError):
    store.restore_latest(run, make_state(width=300), make_config())


@pytest.mark.parametrize('value', [[], 7, {'x': 1}, {'1': 2}, {'1': {}}, None])
@pytest.mark.parametrize('item', ['classes', 'position', 'health'])
def test_an_item_of_another_form_is_named(run, item, value):
  if item != 'health':
    forget_checksums(run)
  path = run / 'checkpoints/4' / item
  (path / 'metadata').write_text(json.dumps(value))
  read = store.read_position if item == 'position' else store.read_classes
  with pytest.raises(store.CorruptCheckpointError) as error:
    read(run)
  assert error.value.path.startswith(str(path))


def test_a_folder_without_a_number_is_named(run):
  (run / 'checkpoints/4').rename(run / 'checkpoints/last')
  with pytest.raises(UserError) as error:
    store.step_of(run / 'checkpoints/last')
  assert error.value.path == str(run / 'checkpoints/last')


def deep(levels):
  return '[' * levels + ']' * levels


CONFIGS = {
  'deep': f'{{"model": {{"x": {deep(100_000)}}}}}',
  'deep enough': f'{{"model": {{"x": {deep(500)}}}}}',
  'long': f'{{"model": {{"x": {[*range(20_000)]}}}}}',
  'list': '[]',
  'no section': '{"model": 7}',
  'section of a number': '{"model": {"backbone": 7}}',
  'renamed section': '{"model": {"sampling": [1]}}',
  'text for a number': '{"model": {"pyramid_channels": "x"}}',
  'number for a tuple': '{"model": {"pixel_mean": 7}}',
  'bool for a number': '{"model": {"mask_convs": true}}',
  'huge': '{"model": {"pyramid_channels": 1e300}}',
  'huger': f'{{"model": {{"pyramid_channels": {"9" * 4000}}}}}',
  'infinite': '{"model": {"anchors": {"scale": Infinity}}}',
  'layers': '{"model": {"mask_convs": 100000}}',
  'text': f'{{"training": {{"x": "{"x" * 10_000}"}}}}',
  'bytes': '\udcff',
  'group': (
    '{"model": {"sampling": {"mask_pool_size": 4, "mask_pool_group": 0}}}'
  ),
}


@pytest.mark.parametrize('text', CONFIGS.values(), ids=CONFIGS)
def test_an_absurd_config_is_named(run, text):
  forget_checksums(run)
  data = text.encode(errors='surrogateescape')
  for name in ('config.json', 'checkpoints/4/config/metadata'):
    (run / name).write_bytes(data)
  with pytest.raises(UserError) as error:
    store.claimed_config(run)
  assert error.value.path == str(run / 'config.json')
  assert len(str(error.value)) < 1000
  assert refusal(run).path.startswith(str(run / 'checkpoints/4/config'))


@pytest.mark.parametrize(
  'canvas', [[2**20, 2**20], [64], 'x', [64, -64], [1.5, 64]]
)
def test_a_canvas_must_fit_into_memory(run, canvas):
  forget_checksums(run)
  for section in ('input', 'evaluation'):
    config = {'model': {}, section: {'canvases': [canvas]}}
    (run / 'checkpoints/4/config/metadata').write_text(json.dumps(config))
    assert refusal(run).argument == f'{section}.canvases'


@pytest.mark.parametrize('pretrained', ['/planted', 'torchvision/planted'])
def test_paths_of_another_machine_are_dropped(run, pretrained):
  forget_checksums(run)
  config = {
    'runtime': {'compilation_cache': '/planted'},
    'input': {'file_pattern': '/planted', 'batch_size': 4},
    'training': {'pretrained': pretrained, 'log_file': '/planted'},
    'evaluation': {'annotations_file': '/planted', 'file_pattern': '/planted'},
  }
  (run / 'checkpoints/4/config/metadata').write_text(json.dumps(config))
  _, restored = store.restore(run)
  assert 'planted' not in str(restored)
  assert restored.input.batch_size == 4


READ = """
import sys
import jax
from maskrcnn_jax.checkpoints import store
store.restore(sys.argv[2])
jax.block_until_ready(jax.numpy.ones(3) + 1)
opened = []
sys.addaudithook(
  lambda event, args: opened.append(args[0]) if event == 'open' else None
)
open('/dev/null').close()  # From here on.
store.claimed_config(sys.argv[1])
store.restore(sys.argv[1])
store.read_classes(sys.argv[1])
open('/dev/zero').close()  # Up to here.
outside = [x for x in opened if not str(x).startswith((sys.argv[1], '/dev/'))]
assert not outside, outside
"""


@pytest.mark.skipif(not shutil.which('strace'), reason='needs strace')
def test_an_import_opens_no_file_outside(saved, tmp_path):
  """As the kernel sees it, for the code of TensorStore too."""
  workdir = shutil.copytree(saved, tmp_path / 'foreign')
  trace = tmp_path / 'trace'
  done = subprocess.run(
    [
      *('strace', '-f', '-qq', '-e', 'trace=open,openat,creat,connect'),
      *('-o', trace, sys.executable, '-c', READ, workdir, saved),
    ],
    env=environment(),
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  lines = trace.read_text().splitlines()
  first, last = (
    next(i for i, x in enumerate(lines) if f'"/dev/{name}"' in x)
    for name in ('null', 'zero')
  )
  seen = [x for x in lines[first + 1 : last] if str(workdir) not in x]
  assert any(str(workdir) in x for x in lines[first:last])
  # What the kernel says of memory and processors.
  seen = [x for x in seen if '"/proc/' not in x and '"/sys/' not in x]
  assert not [x for x in seen if 'open' in x or 'connect' in x], seen


def test_the_kinds_of_names():
  for name in (
    'step',
    "('params', 'fpn')",
    'cpu:0',
    'a..b',
    'd/1ae2',
    'a.b/0.0',
  ):
    assert not containment._ELSEWHERE.search(name), name


def test_an_untouched_workdir_is_restored(run):
  variables, _ = store.restore(run)
  assert_same(variables['params'], make_state(width=300).params)
