"""From records to batches of NumPy arrays; imports no JAX.

What reads records loads TensorFlow; single images do without.
"""

import importlib

__all__ = ['batch_spec', 'eval_batches', 'train_batches']


def __getattr__(name):
  if name not in __all__:
    raise AttributeError(f'Module {__name__!r} has no attribute {name!r}.')
  return getattr(importlib.import_module(f'{__name__}.batches'), name)
