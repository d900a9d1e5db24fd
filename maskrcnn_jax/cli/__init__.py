"""The `maskrcnn-jax` command: one file per group of verbs."""
