"""From records to batches of NumPy arrays; imports no JAX."""

from maskrcnn_jax.input_pipeline.batches import eval_batches, train_batches

__all__ = ['eval_batches', 'train_batches']
