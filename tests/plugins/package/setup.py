"""A plugin for JAX, installed by test_plugins.py into an environment."""

import setuptools

setuptools.setup(
  name='fake-hpu',
  version='1.0',
  py_modules=['fake_hpu'],
  entry_points={'jax_plugins': ['hpu = fake_hpu']},
)
