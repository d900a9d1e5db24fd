"""From records to batches of NumPy arrays; imports no JAX."""

from maskrcnn_jax.input_pipeline.batches import (
  batch_spec,
  eval_batches,
  train_batches,
)

__all__ = ['batch_spec', 'eval_batches', 'train_batches']
