"""Weight files: reading, writing, refused and corrupt files.

The `.pth` files of this folder were written by PyTorch 2.14.1, as
files/README.md describes.
"""

import collections
import io
import os
import pathlib
import pickle
import pickletools
import shutil
import subprocess
import sys
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import safe_pickle, tensor_files

FILES = pathlib.Path(__file__).parent / 'files'
BIG = np.arange(48, dtype=np.float32).reshape(6, 8)
TENSORS = {
  'plain': np.float32([[0, 1, 2], [3, 4, 5]]),
  'transposed': np.float32([[0, 3], [1, 4], [2, 5]]),
  'part': BIG[1:4, 1::3],
  'half': np.float16([0, 0.25, 0.5, 0.75]),
  'bfloat16': np.array([0, 0.25, 0.5, 0.75], ml_dtypes.bfloat16),
  'double': np.arange(3) / 3,
  'long': np.int64([-1, 0, 1]),
  'int': np.int32([0, 1, 2]),
  'short': np.int16([0, 1, 2]),
  'char': np.int8([-1, 0, 1]),
  'byte': np.uint8([0, 1, 2]),
  'bool': np.array([True, False]),
  'scalar': np.float32(2.5),
  'empty': np.zeros((0, 3), np.float32),
  'parameter': np.float32([0, 1]),
}
FLOATS = {'a.weight': TENSORS['plain'], 'a.bias': np.float32([7, 8])}


def refused(path):
  """The error of reading a file, which names it."""
  with pytest.raises(UserError) as error:
    tensor_files.read(path)
  assert error.value.path == str(path)
  return error.value


def assert_same(arrays, expected):
  assert arrays.keys() == expected.keys()
  for name, array in expected.items():
    assert arrays[name].dtype == np.asarray(array).dtype, name
    np.testing.assert_array_equal(arrays[name], array, err_msg=name)


@pytest.mark.parametrize('form', ['zip', 'legacy'])
def test_pytorch_files(form):
  file = tensor_files.read(FILES / f'torch_{form}.pth')
  assert_same(file.arrays, TENSORS)
  assert not file.others


def test_a_checkpoint_of_a_training_run():
  file = tensor_files.read(FILES / 'torch_training.pth')
  assert file.arrays['0.weight'].item() == 3.0
  assert file.arrays['0.bias'].item() == 4.0
  assert '1.num_batches_tracked' in file.arrays
  assert file.others == ['optimizer', 'lr_scheduler', 'epoch']


@pytest.mark.parametrize(
  'name, refused',
  [
    ('namespace', 'argparse.Namespace'),
    ('module', 'torch.nn.modules.container.Sequential'),
  ],
)
def test_objects_of_programs_are_refused_by_name(name, refused):
  path = FILES / f'torch_{name}.pth'
  with pytest.raises(safe_pickle.UnsafePickleError) as error:
    tensor_files.read(path)
  assert error.value.path == str(path)
  assert error.value.item == refused
  assert refused in str(error.value)
  assert 'torch.save(model.state_dict(), FILE)' in str(error.value)


@pytest.mark.parametrize('protocol', range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_numpy_arrays(tmp_path, protocol):
  arrays = {
    'c': np.arange(6, dtype=np.float32).reshape(2, 3),
    'fortran': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    'big_endian': np.arange(3, dtype='>f4'),
    'scalar': np.arange(1, dtype=np.int64).reshape(()),
  }
  content = {'model': arrays, '__author__': 'somebody', 'step': np.float32(3)}
  path = tmp_path / 'weights.pkl'
  path.write_bytes(pickle.dumps(content, protocol))
  file = tensor_files.read(path)
  assert file.arrays.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(file.arrays[name], array)
  assert file.others == ['__author__', 'step']


def python_2_pickle(name, array):
  """As Python 2 pickled a dict of one array: its strings are bytes."""

  def text(data):
    size = len(data).to_bytes(4, 'little')
    return pickle.BINSTRING + size + data

  def global_(module, name):
    return pickle.GLOBAL + f'{module}\n{name}\n'.encode()

  shape = b''.join(pickle.BININT1 + bytes([side]) for side in array.shape)
  return b''.join(
    [
      pickle.PROTO + b'\x02' + pickle.EMPTY_DICT + text(name.encode()),
      global_('numpy.core.multiarray', '_reconstruct'),
      pickle.MARK + global_('numpy', 'ndarray'),
      pickle.MARK + pickle.BININT1 + b'\0' + pickle.TUPLE,
      text(b'b') + pickle.TUPLE + pickle.REDUCE,
      pickle.MARK + pickle.BININT1 + b'\1',
      pickle.MARK + shape + pickle.TUPLE,
      global_('numpy', 'dtype') + pickle.MARK + text(b'f4'),
      pickle.BININT1 + b'\0' + pickle.BININT1 + b'\1' + pickle.TUPLE,
      pickle.REDUCE + pickle.MARK + pickle.BININT1 + b'\3' + text(b'<'),
      pickle.NONE + pickle.NONE + pickle.NONE,
      pickle.BININT + b'\xff' * 4 + pickle.BININT + b'\xff' * 4,
      pickle.BININT1 + b'\0' + pickle.TUPLE + pickle.BUILD,
      pickle.NEWFALSE + text(array.tobytes()) + pickle.TUPLE + pickle.BUILD,
      pickle.SETITEM + pickle.STOP,
    ]
  )


def test_a_pickle_of_python_2(tmp_path):
  array = np.float32([[1.5, -2.5], [1e-30, 3e7]])
  path = tmp_path / 'R-50.pkl'
  path.write_bytes(python_2_pickle('conv1_w', array))
  # Python 3 reads the same of it.
  expected = pickle.loads(path.read_bytes(), encoding='latin1')
  np.testing.assert_array_equal(expected['conv1_w'], array)
  assert_same(tensor_files.read(path).arrays, {'conv1_w': array})


def test_npz_and_safetensors(tmp_path):
  expected = TENSORS | {'part': np.ascontiguousarray(TENSORS['part'])}
  del expected['bfloat16']
  np.savez(tmp_path / 'weights.npz', **expected)
  file = tensor_files.read(tmp_path / 'weights.npz')
  assert_same(file.arrays, expected)
  expected['bfloat16'] = TENSORS['bfloat16']
  expected = {name: np.asarray(x) for name, x in expected.items()}
  path = tmp_path / 'weights.safetensors'
  path.write_bytes(safetensors.numpy.save(expected))
  assert_same(tensor_files.read(path).arrays, expected)


def test_the_format_is_told_by_the_content(tmp_path):
  """timm names its files pytorch_model.bin."""
  path = tmp_path / 'pytorch_model.bin'
  shutil.copy(FILES / 'torch_zip.pth', path)
  assert_same(tensor_files.read(path).arrays, TENSORS)


class Command:
  """Runs a command when it is unpickled."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


def poisons(folder):
  """Pickles that would make the file `executed`, by name."""
  command = f'touch {folder}/executed'
  plain = {'model': FLOATS, 'evil': Command(os.system, command)}
  build = b''.join(
    [
      pickle.PROTO + b'\x02',
      # A state that replaces the code of an admitted function.
      pickle.GLOBAL + b'torch._utils\n_rebuild_tensor_v2\n',
      pickle.NONE + pickle.EMPTY_DICT,
      pickle.UNICODE + b'__code__\n' + pickle.GLOBAL + b'os\nsystem\n',
      pickle.SETITEM + pickle.TUPLE2 + pickle.BUILD,
      pickle.MARK + pickle.UNICODE + command.encode() + b'\n',
      pickle.TUPLE + pickle.REDUCE + pickle.STOP,
    ]
  )
  return {
    'system': pickle.dumps(plain),
    'protocol 2': pickle.dumps(plain, 2),
    'eval': pickle.dumps({'a': Command(eval, '__import__("os").getpid()')}),
    'getattr': pickle.dumps(Command(getattr, 'text', 'upper')),
    'subprocess': pickle.dumps(Command(subprocess.call, command, -1)),
    'state': build,
  }


LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def containers(data):
  """The same pickle in each of the formats that hold one."""
  archive = io.BytesIO()
  with zipfile.ZipFile(archive, 'w') as file:
    file.writestr('archive/data.pkl', data)
    file.writestr('archive/version', '3\n')
  head = b''.join(
    pickle.dumps(x, 2) for x in (LEGACY_MAGIC, 1001, {'little_endian': True})
  )
  return {'pkl': data, 'zip': archive.getvalue(), 'legacy': head + data}


@pytest.mark.parametrize(
  'poison', ['system', 'protocol 2', 'eval', 'getattr', 'subprocess', 'state']
)
@pytest.mark.parametrize('container', ['pkl', 'zip', 'legacy'])
def test_nothing_is_executed(tmp_path, poison, container):
  path = tmp_path / 'weights.pth'
  path.write_bytes(containers(poisons(tmp_path)[poison])[container])
  with pytest.raises(safe_pickle.UnsafePickleError) as error:
    tensor_files.read(path)
  assert error.value.path == str(path)
  assert not (tmp_path / 'executed').exists()


def test_the_poison_works(tmp_path):
  """Otherwise the test above could not fail."""
  pickle.loads(poisons(tmp_path)['system'])
  assert (tmp_path / 'executed').exists()


def test_object_arrays_are_not_unpickled(tmp_path):
  evil = np.array([Command(os.system, f'touch {tmp_path}/executed')], object)
  np.savez(tmp_path / 'weights.npz', weight=evil)
  refused(tmp_path / 'weights.npz')
  path = tmp_path / 'weights.pkl'
  path.write_bytes(pickle.dumps({'weight': np.array([None])}))
  assert 'object' in str(refused(path))
  assert not (tmp_path / 'executed').exists()


def test_a_storage_larger_than_declared_is_not_read(tmp_path):
  path = tmp_path / 'weights.pth'
  with (
    zipfile.ZipFile(FILES / 'torch_zip.pth') as source,
    zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as target,
  ):
    for name in source.namelist():
      is_first = name.endswith('/data/0')
      target.writestr(name, bytes(2**25) if is_first else source.read(name))
  tracemalloc.start()
  error = refused(path)
  assert tracemalloc.get_traced_memory()[1] < 2**20
  tracemalloc.stop()
  assert error.item == 'plain' and str(2**25) in str(error)


def test_containers_in_many_places(tmp_path):
  """One that contains itself; and a small file with 2^60 paths through it."""
  path = tmp_path / 'weights.pkl'
  loop = {}
  loop['model'] = loop
  path.write_bytes(pickle.dumps(loop))
  refused(path)
  many = [0]
  for _ in range(60):
    many = [many, many]
  path.write_bytes(pickle.dumps({'model': FLOATS, 'many': many}))
  assert_same(tensor_files.read(path).arrays, FLOATS)


@pytest.mark.parametrize(
  'offset, shape, strides',
  [
    (1, (4,), (1,)),  # One element too far.
    (0, (2, 2), (3, 2)),
    (0, (5,), (0,)),  # More elements than there are.
    (0, (10**9, 10**9), (0, 0)),
    (-1, (2,), (1,)),
    (0, (2,), (-1,)),
    (0, (-2,), (1,)),
    (0, (2,), ()),
    (0.5, (2,), (1,)),
  ],
)
def test_a_tensor_stays_within_its_storage(offset, shape, strides):
  storage = safe_pickle.Storage(np.dtype(np.float32), '0', 4)
  tensor = safe_pickle.LazyTensor(storage, offset, shape, strides)
  with pytest.raises(UserError):
    tensor.view(np.arange(4, dtype=np.float32))


@pytest.mark.parametrize(
  'name', ['torch_zip.pth', 'torch_legacy.pth', 'a.pkl', 'a.safetensors', 'npz']
)
def test_truncated_files(tmp_path, name):
  path = tmp_path / name
  if name == 'a.pkl':
    path.write_bytes(pickle.dumps(FLOATS))
  elif name == 'a.safetensors':
    path.write_bytes(safetensors.numpy.save(FLOATS))
  elif name == 'npz':
    with path.open('wb') as file:
      np.savez(file, **FLOATS)
  else:
    shutil.copy(FILES / name, path)
  content = path.read_bytes()
  tensor_files.read(path)
  for size in range(20, len(content), 37):
    path.write_bytes(content[:size])
    assert str(path) in str(refused(path))


def test_pickles_of_unexpected_objects(tmp_path):
  path = tmp_path / 'weights.pth'
  for objects in (
    (LEGACY_MAGIC, 1001, []),
    (LEGACY_MAGIC, 1001, {}, FLOATS, 7),
  ):
    path.write_bytes(b''.join(pickle.dumps(x, 2) for x in objects))
    refused(path)


def test_files_of_other_kinds(tmp_path):
  path = tmp_path / 'weights.pth'
  for content in (
    b'<html>not found</html>',
    b'',
    pickle.dumps([1, 2]),
    pickle.dumps({'epoch': 3}),
  ):
    path.write_bytes(content)
    message = str(refused(path))
  assert 'epoch' in message
  with zipfile.ZipFile(path, 'w') as file:
    file.writestr('letter.txt', 'dear')
  refused(path)


def test_a_misspelt_name(tmp_path):
  (tmp_path / 'resnet50.pth').touch()
  with pytest.raises(FileNotFoundError, match=r"'resnet50\.pth'"):
    tensor_files.read(tmp_path / 'resnet5.pth')


WRITTEN = collections.OrderedDict(
  b=np.arange(6, dtype=np.float32).reshape(1, 2, 3).transpose(0, 2, 1),
  a=np.float32(1.5),
  n=np.int64(7),
  empty=np.zeros((2, 0), np.float32),
)


@pytest.mark.parametrize('suffix', tensor_files.SUFFIXES)
def test_files_are_read_back_as_written(tmp_path, suffix):
  path = tmp_path / f'weights{suffix}'
  tensor_files.write(path, WRITTEN)
  assert_same(tensor_files.read(path).arrays, WRITTEN)
  assert [x.name for x in tmp_path.iterdir()] == [path.name]
  before = path.read_bytes()
  with pytest.raises(UserError) as error:
    tensor_files.write(path, WRITTEN)
  assert error.value.path == str(path)
  assert path.read_bytes() == before


def test_a_written_pth_is_what_pytorch_writes(tmp_path):
  """The same program, except that theirs refers back to repeated parts."""
  tensor_files.write(tmp_path / 'a.pth', {'plain': TENSORS['plain']})
  ours = zipfile.ZipFile(tmp_path / 'a.pth')
  theirs = zipfile.ZipFile(FILES / 'torch_zip.pth')
  assert ours.read('archive/version') == theirs.read('torch_zip/version')
  assert ours.read('archive/byteorder') == theirs.read('torch_zip/byteorder')
  assert ours.read('archive/data/0') == theirs.read('torch_zip/data/0')

  def program(data):
    steps = [(x.name, arg) for x, arg, _ in pickletools.genops(data)]
    names = [arg for name, arg in steps if name == 'GLOBAL']
    kinds = ('BINUNICODE', 'BINPERSID', 'REDUCE', 'NEWFALSE')
    return names, [step for step in steps if step[0] in kinds]

  names, mine = program(ours.read('archive/data.pkl'))
  their_names, steps = program(theirs.read('torch_zip/data.pkl'))
  assert {*names} <= {*their_names}
  assert mine == steps[: len(mine)]


def test_invalid_outputs(tmp_path):
  with pytest.raises(UserError) as error:
    tensor_files.write(tmp_path / 'a.bin', WRITTEN)
  assert error.value.given == '.bin'
  assert error.value.wanted == tensor_files.SUFFIXES
  with pytest.raises(FileNotFoundError):
    tensor_files.write(tmp_path / 'none/a.pth', WRITTEN)
  with pytest.raises(UserError) as error:
    tensor_files.write(tmp_path / 'a.pth', {'a': np.zeros(2)})
  assert (error.value.item, error.value.given) == ('a', 'float64')
  assert not [*tmp_path.iterdir()]


def test_modules_are_imported_without_pytorch():
  code = (
    'import sys, maskrcnn_jax.weights.external; '
    "assert not {'torch', 'tensorflow', 'jax'} & {*sys.modules}"
  )
  subprocess.run([sys.executable, '-c', code], check=True)
