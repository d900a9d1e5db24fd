"""Mutations of files: of any bytes, and of the structure of known formats.

Each takes a `random.Random` and the content and returns another content. Most
of a mutated file stays valid, so that it reaches the code behind the first
checks.
"""

import io
import json
import pickletools
import random
import re
import struct
import zipfile
import zlib

from maskrcnn_jax import wire_format

# Sizes and counts that are often handled wrong.
_NUMBERS = (
  *(0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 65535, 65536, 2**24, 2**31 - 1),
  *(2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1),
)
_VALUES = (
  *(None, True, False, -1, -0.0, 1e-320, 1e9, 1e308, float('nan')),
  *(float('inf'), '', 'x' * 5000, '../../x', '/etc/passwd', '\x1b[31m\x07'),
  *('\ud800', '\0', 'nan', '1e9', [], {}, [[]], {'': None}, [1, 2], {'a': []}),
  *_NUMBERS,
)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
  """Flips, overwrites, cuts, inserts or repeats some bytes."""
  data = bytearray(data)
  for _ in range(rng.choice((1, 1, 2, 4))):
    place = rng.randrange(len(data) + 1)
    length = rng.choice((1, 1, 2, 4, 8, 64))
    end = place + length
    match rng.randrange(6):
      case 0 if place < len(data):
        data[place] ^= 1 << rng.randrange(8)
      case 1:
        data[place:end] = rng.randbytes(length)
      case 2:
        del data[place:end]
      case 3:
        data[place:place] = data[place:end] * rng.choice((1, 2, 50))
      case 4:
        del data[place:]
      case _:
        size = rng.choice((1, 2, 4, 8))
        number = rng.choice(_NUMBERS) % 2 ** (8 * size)
        order = rng.choice(('little', 'big'))
        data[place : place + size] = number.to_bytes(size, order)
  return bytes(data)


def _edit_tree(rng, tree):
  """Replaces, removes, repeats or moves one value of nested values."""
  places = []

  def visit(node):
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
      places.append((node, key))
      if isinstance(value, dict | list):
        visit(value)

  visit(tree)
  if not places:
    return rng.choice(_VALUES)
  node, key = rng.choice(places)
  match rng.randrange(8):
    case 0:
      del node[key]
    case 1:
      parent, other = rng.choice(places)
      node[key] = json.loads(json.dumps(parent[other]))
    case 2:
      value = node[key]
      node[key] = [value] * rng.choice((0, 1, 3, 1000))
    case 3:
      node[key] = {'a': node[key]}
    case 4:
      depth = rng.choice((3, 900, 3000))
      node[key] = json.loads('[' * depth + ']' * depth) if depth < 950 else []
    case 5 if isinstance(node, dict):
      node[str(rng.choice(_VALUES))] = node.pop(key)
    case 6 if isinstance(node[key], int | float):
      node[key] = -node[key] * rng.choice((1, 10, 1e9))
    case _:
      node[key] = rng.choice(_VALUES)
  return tree


def mutate_json(rng: random.Random, data: bytes) -> bytes:
  """Edits values of a JSON; sometimes its bytes."""
  if rng.random() < 0.15:
    return mutate_bytes(rng, data)
  try:
    tree = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
      tree = _edit_tree(rng, tree)
    text = json.dumps(tree)
  except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
    return mutate_bytes(rng, data)
  if rng.random() < 0.02:
    depth = rng.choice((1000, 100_000))
    text = '[' * depth + text + ']' * depth
  return text.encode('utf-8', 'surrogatepass')


def mutate_text(rng: random.Random, data: bytes) -> bytes:
  """Exchanges words and lines of a text, such as YAML or labels."""
  if rng.random() < 0.2:
    return mutate_bytes(rng, data)
  words = re.split(rb'(\s+|[:,;<>/="\[\]{}-])', data)
  for _ in range(rng.choice((1, 1, 2, 5))):
    place = rng.randrange(len(words))
    match rng.randrange(5):
      case 0:
        words[place] = rng.choice(words)
      case 1:
        words[place] = words[place] * rng.choice((0, 2, 100))
      case 2:
        marks = (b'&a', b'*a', b'!!python/object:x', b'<<', b'[' * 500)
        marks += (b'?', b'&e;', b'<!ENTITY e "x">', b'<a>' * 5000)
        words[place] = rng.choice(marks)
      case _:
        value = str(rng.choice(_VALUES)).encode('utf-8', 'surrogatepass')
        words[place] = value
  return b''.join(words)


def mutate_pickle(rng: random.Random, data: bytes) -> bytes:
  """Edits opcodes of a pickle: their order, number and arguments."""
  if rng.random() < 0.15:
    return mutate_bytes(rng, data)
  try:
    starts = [place for _, _, place in pickletools.genops(data)]
  except Exception:
    return mutate_bytes(rng, data)
  ops = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)])]
  for _ in range(rng.choice((1, 1, 2, 4))):
    place = rng.randrange(len(ops))
    match rng.randrange(8):
      case 0:
        del ops[place]
      case 1:
        ops.insert(place, rng.choice(ops))
      case 2:
        other = rng.randrange(len(ops))
        ops[place], ops[other] = ops[other], ops[place]
      case 3:
        number = rng.choice(_NUMBERS)
        ops[place] = b'r' + (number % 2**32).to_bytes(4, 'little')
      case 4:
        ops.insert(place, b'\x8a\x08' + rng.randbytes(8))
      case 5:
        call = rng.choice((b'cos\nsystem\n', b'cbuiltins\neval\n'))
        ops.insert(place, call + b"(S'exit 7'\ntR")
      case 6:
        repeated = rng.choice((b'2', b'\x86', b'2\x86', b'}', b'(', b']', b'Q'))
        ops.insert(place, repeated * rng.choice((1, 2, 30)))
      case _:
        ops[place] = ops[place][:1] + mutate_bytes(rng, ops[place][1:] or b'\0')
  return b''.join(ops)


def mutate_npy(rng: random.Random, data: bytes) -> bytes:
  """Edits the header of a .npy file; sometimes its bytes."""
  if rng.random() < 0.2 or data[:6] != b'\x93NUMPY':
    return mutate_bytes(rng, data)
  length = struct.unpack('<H', data[8:10])[0]
  header, body = data[10 : 10 + length], data[10 + length :]
  if rng.random() < 0.6:
    shape = ', '.join(
      str(rng.choice(_NUMBERS)) for _ in range(rng.randrange(4))
    )
    header = re.sub(rb'\([^)]*\)', f'({shape},)'.encode(), header)
  else:
    kinds = ('|O', '<f8', '|V9', '<U99999999', '>i4', 'f4,i4', '|S0', '<c16')
    name = rng.choice(kinds).encode()
    header = re.sub(rb"('descr': )'[^']*'", rb"\1'" + name + b"'", header)
  size = struct.pack('<H', len(header) % 65536)
  return data[:8] + size + header + body


def mutate_zip(rng: random.Random, data: bytes) -> bytes:
  """Edits members of a zip file, their names or their headers."""
  if rng.random() < 0.2:
    return mutate_bytes(rng, data)
  if rng.random() < 0.3:
    return _mutate_zip_headers(rng, data)
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      members = [(x.filename, archive.read(x)) for x in archive.infolist()]
  except Exception:
    return mutate_bytes(rng, data)
  place = rng.randrange(len(members))
  name, content = members[place]
  action = rng.randrange(6)
  if action == 0:
    del members[place]
  elif action == 1:
    members.append((name, b'1' * 100))
  elif action == 2:
    other = rng.choice(members)[0]
    members[place] = (rng.choice((other, '../x', '/x', 'x' * 300)), content)
  else:
    pickles = [x for x, (n, _) in enumerate(members) if n.endswith('.pkl')]
    if pickles and rng.random() < 0.7:
      place = pickles[0]
      name, content = members[place]
    suffix = name.rpartition('.')[2]
    mutate = {'pkl': mutate_pickle, 'npy': mutate_npy}.get(suffix, mutate_bytes)
    members[place] = (name, mutate(rng, content))
  made = io.BytesIO()
  methods = (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
  with zipfile.ZipFile(made, 'w', rng.choice(methods)) as archive:
    for name, content in members:
      archive.writestr(name, content)
  return made.getvalue()


def _mutate_zip_headers(rng, data):
  """Writes a number into a field of a local, central or end header."""
  data = bytearray(data)
  marks = (b'PK\x03\x04', b'PK\x01\x02', b'PK\x05\x06')
  places = [
    x.start() for mark in marks for x in re.finditer(re.escape(mark), data)
  ]
  if not places:
    return mutate_bytes(rng, bytes(data))
  place, size = rng.choice(places) + rng.randrange(4, 46), rng.choice((2, 4))
  number = rng.choice(_NUMBERS) % 2 ** (8 * size)
  data[place : place + size] = number.to_bytes(size, 'little')
  return bytes(data)


def mutate_safetensors(rng: random.Random, data: bytes) -> bytes:
  """Edits the JSON header of a .safetensors file, or its length."""
  length = int.from_bytes(data[:8], 'little')
  if rng.random() < 0.2 or length > len(data):
    return mutate_bytes(rng, data)
  header = mutate_json(rng, data[8 : 8 + length])
  size = len(header) if rng.random() < 0.8 else rng.choice(_NUMBERS)
  size = (size % 2**64).to_bytes(8, 'little')
  return size + header + data[8 + length :]


def _varint(number):
  found = bytearray()
  while number > 127:
    found.append(number & 127 | 128)
    number >>= 7
  return bytes([*found, number])


def _read_varint(data, place):
  number = shift = 0
  while True:
    byte = data[place]
    number |= (byte & 127) << shift
    place, shift = place + 1, shift + 7
    if byte < 128:
      return number, place


def mutate_protobuf(rng: random.Random, data: bytes, depth: int = 0) -> bytes:
  """Edits fields of a protobuf message, also of those within."""
  fields, place = [], 0
  try:
    while place < len(data):
      key, start = _read_varint(data, place)
      if key & 7 == 0:
        _, end = _read_varint(data, start)
      elif key & 7 == 2:
        size, start = _read_varint(data, start)
        end = start + size
      else:
        end = start + {1: 8, 5: 4}[key & 7]
      if end > len(data):
        raise IndexError
      fields.append([key, data[start:end]])
      place = end
  except (IndexError, KeyError):
    return mutate_bytes(rng, data)
  if not fields:
    return mutate_bytes(rng, data)
  field = rng.choice(fields)
  match rng.randrange(8):
    case 0:
      fields.remove(field)
    case 1:
      fields += [list(field)] * rng.choice((1, 2, 1000))
    case 2:
      field[0] = rng.choice(_NUMBERS) % 2**32
    case 3 if field[0] & 7 == 0:
      field[1] = _varint(rng.choice(_NUMBERS) % 2**64)
    case 4:
      field[1] = field[1][: rng.randrange(len(field[1]) + 1)]
    case _ if field[0] & 7 == 2 and depth < 6:
      field[1] = mutate_protobuf(rng, field[1], depth + 1)
    case _:
      field[1] = mutate_bytes(rng, field[1])
  whole = b''
  for key, content in fields:
    size = _varint(len(content)) if key & 7 == 2 else b''
    if size and rng.random() < 0.02:
      size = rng.choice((b'\x80' * 9 + b'\x01', b'\xff' * 1000, _varint(2**35)))
    whole += _varint(key) + size + content
  return whole


def mutate_records(rng: random.Random, data: bytes) -> bytes:
  """Edits the examples of a record file; the checksums stay right."""
  if rng.random() < 0.15:
    return mutate_bytes(rng, data)
  parts, place = [], 0
  while place + 12 <= len(data):
    length = int.from_bytes(data[place : place + 8], 'little')
    parts.append(data[place + 12 : place + 12 + length])
    place += length + 16
  if not parts:
    return mutate_bytes(rng, data)
  number = rng.randrange(len(parts))
  for _ in range(rng.choice((1, 1, 2))):
    parts[number] = mutate_protobuf(rng, parts[number])
  whole = b''
  for part in parts:
    size = len(part) if rng.random() < 0.99 else rng.choice(_NUMBERS) % 2**64
    size = size.to_bytes(8, 'little')
    checksums = map(wire_format.masked_crc32c, (size, part))
    whole += size + struct.pack('<I', next(checksums))
    whole += part + struct.pack('<I', next(checksums))
  return whole


def mutate_image(rng: random.Random, data: bytes) -> bytes:
  """Edits the header of an image; the checksums of a PNG stay right."""
  if rng.random() < 0.4:
    return mutate_bytes(rng, data)
  if data[:4] == b'\x89PNG':
    return _mutate_png(rng, data)
  # Sizes of all formats lie in their first bytes, those of TIFF anywhere.
  place = rng.randrange(min(len(data), 400))
  size = rng.choice((1, 2, 4))
  number = rng.choice(_NUMBERS) % 2 ** (8 * size)
  number = number.to_bytes(size, rng.choice(('little', 'big')))
  return data[:place] + number + data[place + size :]


def _mutate_png(rng, data):
  chunks, place = [], 8
  while place + 8 <= len(data):
    length = int.from_bytes(data[place : place + 4], 'big')
    kind, start = data[place + 4 : place + 8], place + 8
    chunks.append([kind, data[start : start + length]])
    place += length + 12
  if not chunks:
    return mutate_bytes(rng, data)
  chunk = rng.choice(chunks[:2] if rng.random() < 0.6 else chunks)
  match rng.randrange(5):
    case 0:
      chunks.remove(chunk)
    case 1:
      chunks.insert(rng.randrange(len(chunks)), list(chunk))
    case 2:
      text = b'a\0\0' + zlib.compress(b'x' * 10**6)
      chunks.insert(1, [rng.choice((b'zTXt', b'iCCP', b'eXIf')), text])
    case _:
      chunk[1] = mutate_bytes(rng, chunk[1] or b'\0')
  whole = data[:8]
  for kind, content in chunks:
    crc = zlib.crc32(kind + content)
    whole += struct.pack('>I', len(content)) + kind + content
    whole += struct.pack('>I', crc)
  return whole


_BY_ENDING = {
  'json': mutate_json,
  'jsonl': mutate_json,
  'npz': mutate_zip,
  'npy': mutate_npy,
  'pkl': mutate_pickle,
  'legacy': mutate_pickle,
  'pth': mutate_zip,
  'safetensors': mutate_safetensors,
  'tfrecord': mutate_records,
  'txt': mutate_text,
  'xml': mutate_text,
  'yaml': mutate_text,
  'csv': mutate_text,
}
_IMAGES = 'avif bmp gif j2k jp2 jpg png ppm tga tif webp'
_BY_ENDING |= dict.fromkeys(_IMAGES.split(), mutate_image)


def mutate(rng: random.Random, name: str, data: bytes) -> bytes:
  """A mutation by the ending of a file name; JSON also without an ending."""
  known = _BY_ENDING.get(name.rpartition('.')[2])
  if known is None:
    known = mutate_json if data[:1] in (b'{', b'[') else mutate_bytes
  try:
    mutated = known(rng, data)
  except Exception:  # An earlier mutation left nothing to edit.
    return mutate_bytes(rng, data)
  # What is large may take long.
  return mutated if len(mutated) < 2**21 else mutate_bytes(rng, data)
