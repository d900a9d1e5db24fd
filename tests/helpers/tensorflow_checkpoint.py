"""TensorFlow checkpoints in both forms, and a backbone for them."""

import numpy as np
import tensorflow as tf

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def write_named(prefix, tensors):
  """A checkpoint of tensors by name, as TensorFlow 1 saves it.

  Args:
    prefix: of its files.
    tensors: arrays by name.
  """
  tf.raw_ops.SaveV2(
    prefix=str(prefix),
    tensor_names=list(tensors),
    shape_and_slices=[''] * len(tensors),
    tensors=[tf.convert_to_tensor(x) for x in tensors.values()],
  )


def write_objects(prefix, tensors):
  """A checkpoint of variables in a graph of objects, as Keras saves it.

  Args:
    prefix: of its files.
    tensors: arrays by name; the keys in the file do not have the names.
  """
  variables = [tf.Variable(x, name=name) for name, x in tensors.items()]
  tf.train.Checkpoint(layers=variables).write(str(prefix))


def google_backbone(depth, width, seed=0):
  """Arrays of a bottleneck ResNet under Google's names.

  Random values that keep the activations bounded.

  Args:
    depth: 50 or 101.
    width: channels of the stem.
    seed: of the random numbers.
  """
  rng = np.random.default_rng(seed)
  tensors = {}
  for index, shape in enumerate(_kernel_shapes(depth, width)):
    end = f'_{index}' if index else ''
    scale = np.sqrt(2.0 / np.prod(shape[:-1]))
    tensors[f'conv2d{end}/kernel'] = scale * rng.normal(size=shape)
    for name, offset in {
      'gamma': 0.3,
      'beta': 0.0,
      'moving_mean': 0.0,
      'moving_variance': 1.0,
    }.items():
      noise = 0.1 * rng.normal(size=shape[-1])
      tensors[f'batch_normalization{end}/{name}'] = offset + noise
  return {name: x.astype(np.float32) for name, x in tensors.items()}


def _kernel_shapes(depth, width):
  """Shapes in the order of the calls: projections first in their block."""
  shapes = [(7, 7, 3, width)]
  channels = width
  for stage, blocks in enumerate(_BLOCKS[depth]):
    inner = width * 2**stage
    for block in range(blocks):
      if block == 0:
        shapes.append((1, 1, channels, 4 * inner))
      shapes.append((1, 1, channels, inner))
      shapes.append((3, 3, inner, inner))
      shapes.append((1, 1, inner, 4 * inner))
      channels = 4 * inner
  return shapes
