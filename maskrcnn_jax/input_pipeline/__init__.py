"""From records to batches of NumPy arrays; imports no JAX."""
