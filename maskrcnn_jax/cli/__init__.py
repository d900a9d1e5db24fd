"""The `maskrcnn-jax` command."""
