"""Weight files that are made to exhaust a machine, and a process to read them.

Run as a script, it reads the files that are named on standard input, one by
one, with little time and memory for each, and prints one line of JSON for each.
"""

import io
import json
import pickle
import resource
import signal
import struct
import sys
import time
import zipfile

import numpy as np

from maskrcnn_jax import wire_format
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import (
  external,
  state_dicts,
)

SECONDS, BYTES = 5, 2**30
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# A tuple of 2^40 paths in 165 bytes.
TUPLES = b')q\0' + b''.join(b'h%c\x86q%c' % (i, i + 1) for i in range(40))
TEXT = b'X' + struct.pack('<I', 10**6) + b'a' * 10**6
# Integers with the same hash.
EQUAL_HASHES = b''.join(
  b'\x8a\x10' + (i * (2**61 - 1)).to_bytes(16, 'little') + b'N'
  for i in range(1, 40_000)
)

# Programs of pickles by name, without protocol and end.
PROGRAMS = {
  'key': b'}' + TUPLES + b'Ns',
  'set': b'cbuiltins\nfrozenset\n(]' + TUPLES + b'atR',
  'items of a set': b'\x8f(' + TUPLES + b'\x90',
  'frozen set': b'(' + TUPLES + b'\x91',
  'type': b'cnumpy\ndtype\n' + TUPLES + b'\x85R',
  'storage': TUPLES + b'Q',
  'name': TUPLES + TUPLES + b'\x93',
  'memo': b'Nr\xff\xff\xff\x1f',
  'depth': b'N' + b'\x85' * 400_000,
  'steps': b'N0' * 5_000_000,
  'digits': b'I' + b'9' * 10**6 + b'\n',
  'long digits': b'L' + b'9' * 10**6 + b'L\n',
  'hash of a number': b'}\x8b' + struct.pack('<I', 10**6) + b'7' * 10**6
  + b'q\x000' + b'h\0Ns' * 200_000,
  'equal hashes': b'}(' + EQUAL_HASHES + b'u',
  'equal keys': b'}' + TEXT + b'q\0N' + b's' + (TEXT + b'q\1Ns')
  + b'h\0Nsh\1Ns' * 100_000,
  'copies of a text': b'c_codecs\nencode\nq\1' + TEXT
  + b'X\6\0\0\0latin1\x86q\2' + b'h\1h\2R' * 100_000,
  'copies of a dict': b'ccollections\nOrderedDict\nq\1}('
  + b''.join(b'J' + struct.pack('<i', i) + b'N' for i in range(10_000))
  + b'u\x85q\2' + b'h\1h\2R' * 50_000,
  'arguments': b'ccollections\nOrderedDict\nq\1(' + b'N' * 10**5 + b'tq\2'
  + b'h\1h\2R0' * 50_000,
  'missing text': b'\x8d' + struct.pack('<Q', 2**40) + b'a',
  'missing bytes': b'\x8e' + struct.pack('<Q', 2**40) + b'a',
  'missing array': b'\x96' + struct.pack('<Q', 2**40) + b'a',
  'missing digits': b'\x8b' + struct.pack('<I', 2**31 - 1) + b'a',
  'frame': b'\x95' + struct.pack('<Q', 2**62) + b'N',
  'loop': b']q\0h\0a',
  'instance': b'(ios\nsystem\n',
  'extension': b'\x82\1',
  'short stack': b'\x86',
  'version': TUPLES,
}  # fmt: skip


def containers(data):
  """A pickle in each of the formats that hold one, by suffix."""
  head = b''.join(
    pickle.dumps(x, 2) for x in (_LEGACY_MAGIC, 1001, {'little_endian': True})
  )
  return {
    '.pkl': data,
    '.pth': torch_zip(data, {}),
    '.legacy.pth': head + data,
    '.version.pth': pickle.dumps(_LEGACY_MAGIC, 2) + data,
    '.keys.pth': head + pickle.dumps({}, 2) + data,
  }


def torch_zip(program, storages, method=zipfile.ZIP_DEFLATED):
  """A `.pth`: the pickle, and storages by key."""
  data = io.BytesIO()
  with zipfile.ZipFile(data, 'w', method) as file:
    file.writestr('archive/data.pkl', program)
    for key, content in storages.items():
      file.writestr(f'archive/data/{key}', content)
  return data.getvalue()


def torch_file(shape, size, data, names=(b'a',), **options):
  """A `.pth` of float32 tensors that all view one storage.

  Args:
    shape: of the tensors.
    size: of the storage, as the pickle tells.
    data: the storage.
    names: of the tensors.
    **options: of `torch_zip`.
  """
  numbers = b''.join(b'\x8a\x08' + struct.pack('<q', side) for side in shape)
  tensor = (
    b'(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpu'
    + b'\x8a\x08' + struct.pack('<q', size) + b'tQ'
    + b'K\0(' + numbers + b't(' + b'K\1' * len(shape) + b't\x89}tR'
  )  # fmt: skip
  items = b''.join(
    b'X' + struct.pack('<I', len(name)) + name
    + b'ctorch._utils\n_rebuild_tensor_v2\n(' + tensor
    for name in names
  )  # fmt: skip
  return torch_zip(b'\x80\2}(' + items + b'u.', {0: data}, **options)


def npz(*arrays, method=zipfile.ZIP_DEFLATED):
  """An `.npz` of arrays, given by their bytes."""
  data = io.BytesIO()
  with zipfile.ZipFile(data, 'w', method) as file:
    for number, content in enumerate(arrays):
      file.writestr(f'{number}.npy', content)
  return data.getvalue()


def npy(shape, data=b'', descr="'<f4'"):
  """An array with a header that may lie."""
  header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"
  size = struct.pack('<H', len(header))
  return b'\x93NUMPY\1\0' + size + header.encode() + data


def safetensors(header, data=bytes(16), size=None):
  if not isinstance(header, bytes):
    header = json.dumps(header).encode()
  size = len(header) if size is None else size
  return struct.pack('<Q', size) + header + data


def tensor(shape=(4,), offsets=(0, 16), dtype='F32'):
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(offsets)}


def files():
  """Content by file name."""
  found = {
    f'{name}{suffix}': data
    for name, program in PROGRAMS.items()
    for suffix, data in containers(b'\x80\2' + program + b'.').items()
  }
  zeros = bytes(2**26)
  many = [b'%d.weight' % i for i in range(5000)]
  found |= {
    'views.pth': torch_file([2**20], 2**20, zeros[: 2**22], many),
    'compressed.pth': torch_file([2**26], 2**26, bytes(2**28)),
    'larger.pth': torch_file([4], 4, zeros),
    'smaller.pth': torch_file([4], 4, bytes(4)),
    'negative.pth': torch_file([4], -4, bytes(16)),
    'sides.pth': torch_file([2**62, 2**62, 0], 4, bytes(16)),
    'rank.pth': torch_file([1] * 100, 4, bytes(16)),
    'method.pth': torch_file([4], 4, bytes(16), method=zipfile.ZIP_LZMA),
    'escape.pth': torch_file([4], 4, bytes(16), [b'\x1b[2Ja']),
    'surrogate.pth': torch_file([4], 4, bytes(16), [b'\xed\xa0\x80']),
    'long name.pth': torch_file([4], 4, bytes(16), [b'a' * 10**6]),
    'no array.npz': npz(b''),
    'huge.npz': npz(npy('(1099511627776,)')),
    'huge header.npz': npz(b'\x93NUMPY\2\0\xff\xff\xff\xff' + zeros),
    'nested.npz': npz(npy('(' * 5000 + ')' * 5000)),
    'object.npz': npz(npy('(1,)', bytes(8), "'|O'")),
    'fields.npz': npz(npy('(1,)', bytes(8), "[('a', '<f4', (999999999,))]")),
    'lzma.npz': npz(npy('(4,)', bytes(16)), method=zipfile.ZIP_LZMA),
    'bzip2.npz': npz(npy('(4,)', bytes(16)), method=zipfile.ZIP_BZIP2),
    'many.npz': npz(*[npy('(16777216,)', zeros)] * 5),
    'negative.npz': npz(npy('(-5,)', bytes(16))),
    'rank.safetensors': safetensors({'a': tensor([1] * 100, (0, 4))}, bytes(4)),
    'outside.safetensors': safetensors({'a': tensor((2**40,), (0, 2**42))}),
    'overlap.safetensors': safetensors({'a': tensor(), 'b': tensor()}),
    'shape.safetensors': safetensors({'a': tensor((2**62, 4), (0, 16))}),
    'length.safetensors': safetensors(b'{', size=2**62),
    'depth.safetensors': safetensors(b'{"a":' * 10**5),
    'many.safetensors': safetensors(
      {str(i): tensor((0,), (0, 0)) for i in range(10**5)}, b''
    ),
  }  # fmt: skip
  return found


def varint(number):
  parts = bytearray()
  while number > 127:
    parts.append(number & 127 | 128)
    number >>= 7
  return bytes([*parts, number])


def field(number, value):
  """A field of a protobuf: a number or bytes."""
  if isinstance(value, int):
    return varint(number << 3) + varint(value)
  return varint(number << 3 | 2) + varint(len(value)) + value


def block(rows):
  """A block of a table; rows are (shared bytes, key, value)."""
  entries = b''.join(
    varint(shared) + varint(len(key)) + varint(len(value)) + key + value
    for shared, key, value in rows
  )
  return entries + struct.pack('<II', 0, 1)


def index(rows):
  """The index of a TensorFlow checkpoint."""
  data, handles = b'', []
  for content in (block(rows), None):
    if content is None:
      content = block([(0, b'z', handles[0])])
    handles.append(varint(len(data)) + varint(len(content)))
    checked = content + b'\0'
    data += checked
    data += struct.pack('<I', wire_format.masked_crc32c(checked))
  footer = (b'\0\0' + handles[1]).ljust(40, b'\0')
  return data + footer + 0xDB4775248B80FB57.to_bytes(8, 'little')


def entry(shape=(4,), size=16, offset=0, dtype=1, shard=0, more=b''):
  sides = b''.join(field(2, field(1, side)) for side in shape)
  fields = field(1, dtype) + field(2, sides) + field(3, shard)
  return fields + field(4, offset) + field(5, size) + more


def tensorflow_files():
  """Index files by name; the data are 16 bytes."""
  name = b'conv2d/kernel'
  rows = {
    'shape': [(0, name, entry((2**40,)))],
    'size': [(0, name, entry((2**40,), 2**42))],
    'offset': [(0, name, entry(offset=2**60))],
    'negative': [(0, name, entry((2**64 - 1,), 2**64 - 4))],
    'rank': [(0, name, entry([2**63] * 20_000))],
    'shard': [(0, name, entry(shard=2**60))],
    'slices': [(0, name, entry(more=field(7, b'')))],
    'texts': [(0, name, entry(dtype=7))],
    'fields': [(0, name, field(1, b'a') + field(2, 5))],
    'corrupt': [(0, name, b'\xff' * 100)],
    'escape': [(0, b'\x1b[2J', entry())],
    'prefixes': [(0, b'a' * 1900, b''), *[(1900, b'b', b'')] * 10**5],
    'graph': [(0, b'_CHECKPOINTABLE_OBJECT_GRAPH', entry((), 2**40, dtype=7))],
  }  # fmt: skip
  return {
    f'{k}.index': index([(0, b'', field(1, 1)), *x]) for k, x in rows.items()
  }


def write(folder):
  """Writes all files; returns their paths."""
  for name, data in (files() | tensorflow_files()).items():
    (folder / name).write_bytes(data)
    if name.endswith('.index'):
      data_file = name.replace('.index', '.data-00000-of-00001')
      (folder / data_file).write_bytes(bytes(16))
  return sorted(x for x in folder.iterdir() if '.data-' not in x.name)


def _read(path):
  """How reading a file ended, as (kind, text)."""
  try:
    file, form = external.read(path)
    for array in file.arrays.values():
      np.asarray(array)
    state_dicts.infer_model(file, form)
  except UserError as error:
    return 'refused', str(error)
  except Exception as error:
    return type(error).__name__, str(error)[:100]
  return 'read', ''


def main():
  used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  resource.setrlimit(resource.RLIMIT_DATA, (used + BYTES,) * 2)
  for path in sys.stdin.read().splitlines():
    # Of the processor, however busy the machine is.
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    begin = time.process_time()
    kind, text = _read(path)
    seconds = time.process_time() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - used
    print(json.dumps([path, kind, text, seconds, peak]), flush=True)


if __name__ == '__main__':
  main()
