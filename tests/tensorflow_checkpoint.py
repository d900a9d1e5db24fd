"""Writes TensorFlow checkpoints, in both of the forms that there are."""

import tensorflow as tf


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
    tensors: arrays by name; the keys in the file say nothing of the names.
  """
  variables = [tf.Variable(x, name=name) for name, x in tensors.items()]
  tf.train.Checkpoint(layers=variables).write(str(prefix))
