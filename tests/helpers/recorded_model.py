"""The model of the `11_model` recordings: weights, names and images.

Both published systems ran with the same weights and images, which are not
stored: they follow from formulas. A manifest names every variable, with the
numbers of its formula and a check sum.
"""

import json
import re
import zlib

import numpy as np

# Names of the recordings as patterns, and ours; numbers count from 1 here.
_RENAMES = (
  (r'^rpn/class/', 'rpn_head/objectness/'),
  (r'^rpn/box/', 'rpn_head/box_deltas/'),
  (r'^rpn/conv/', 'rpn_head/conv/'),
  (r'^box_head/class/', 'box_head/class_logits/'),
  (r'^box_head/box/', 'box_head/box_deltas/'),
  (r'^mask_head/logits/', 'mask_head/mask_logits/'),
  (r'^mask_head/conv(\d)/', lambda m: f'mask_head/conv{int(m[1]) + 1}/'),
  (r'/block(\d+)/', lambda m: f'/block{int(m[1]) + 1}/'),
  (r'/shortcut/conv/', '/shortcut_conv/'),
  (r'/shortcut/bn/', '/shortcut_norm/'),
  (r'/conv(\d)/conv/', r'/conv\1/'),
  (r'/conv(\d)/bn/', r'/norm\1/'),
  (r'/stem/bn/', '/stem/norm/'),
  (r'/gamma$', '/scale'),
  (r'/beta$', '/bias'),
  (r'/moving_mean$', '/mean'),
  (r'/moving_variance$', '/variance'),
)
# Its input and output channels are swapped in the recordings.
_DECONV = 'mask_head/deconv/kernel'


def manifest(recorded):
  """The description of every variable, from a loaded manifest file."""
  return json.loads(str(recorded['manifest_json']))


def salt(recorded):
  """Salt of the random numbers of a recording."""
  return json.loads(str(recorded['meta']))['params']['salt']


def collection(entry):
  """Collection of a variable: `params` or `batch_stats`."""
  return 'batch_stats' if '/bn/' in entry['name'] else 'params'


def our_name(name):
  """Our path of a recorded variable, such as `fpn/lateral2/kernel`."""
  for pattern, replacement in _RENAMES:
    name = re.sub(pattern, replacement, name)
  return name


def make_array(entry, salt):
  """A variable in the recorded layout.

  Args:
    entry: of the manifest.
    salt: of the recording.
  """
  name, shape = entry['name'], entry['shape']
  seed = zlib.crc32(f'{salt}/{name}'.encode()) & 0xFFFFFFFF
  values = np.random.RandomState(seed).standard_normal(shape)
  if entry['center']:
    axes = (0, 1, 3) if name == _DECONV else tuple(range(len(shape) - 1))
    values -= values.mean(axis=axes, keepdims=True)
  if entry['kind'] == 'kernel':
    values *= entry['mult'] * np.sqrt(2.0 / entry['fan_in'])
  elif entry['kind'] == 'affine':
    values = entry['offset'] + entry['scale'] * values
  elif entry['kind'] == 'abs_affine':
    values = entry['offset'] + entry['scale'] * np.abs(values)
  else:
    raise ValueError(f'{name} has the unknown kind {entry["kind"]!r}.')
  return values.astype(np.float32)


def change_layout(name, array):
  """A variable as our model stores it from the recorded layout, or back."""
  return np.swapaxes(array, 2, 3) if name == _DECONV else array


def variables(recorded):
  """All variables of a manifest, as `model.apply` takes them."""
  result = {'params': {}, 'batch_stats': {}}
  for entry in manifest(recorded):
    *scopes, leaf = our_name(entry['name']).split('/')
    node = result[collection(entry)]
    for scope in scopes:
      node = node.setdefault(scope, {})
    if leaf in node:
      raise ValueError(f'{entry["name"]} has the place of another variable.')
    array = make_array(entry, salt(recorded))
    node[leaf] = change_layout(entry['name'], array)
  return result


def look_up(params, name):
  """The leaf of our parameters, or of a tree like them, of a recorded name."""
  for key in our_name(name).split('/'):
    params = params[key]
  return params


def images(seed, canvas, sizes):
  """Images of waves, discs and noise, one channel after the other.

  Args:
    seed: of the recording.
    canvas: (height, width).
    sizes: of each image, the part that is not zero.

  Returns:
    `[batch, height, width, 3]` float32, as normalisation leaves images.
  """
  random = np.random.RandomState(seed)
  y, x = np.mgrid[: canvas[0], : canvas[1]].astype(np.float64)
  result = np.zeros((len(sizes), *canvas, 3), np.float32)
  for image, (height, width) in zip(result, sizes):
    values = np.zeros((*canvas, 3))
    for channel in range(3):
      for _ in range(6):
        rise_y, rise_x = random.uniform(0, 0.25, 2)
        wave = np.sin(rise_y * y + rise_x * x + random.uniform(0, 6.3))
        values[..., channel] += 0.5 * wave
      for _ in range(4):
        center_y, center_x = random.uniform(0, canvas)
        radius, height_of_disc = random.uniform((8, -2), (50, 2))
        inside = (y - center_y) ** 2 + (x - center_x) ** 2 < radius**2
        values[..., channel] += height_of_disc * inside
    values += 0.3 * random.standard_normal(values.shape)
    image[:height, :width] = values[:height, :width]
  return result
