"""The compilation cache is where it was asked for."""

import jax

from maskrcnn_jax.distributed import processes as runtime


def test_the_compilation_cache_is_set_once(tmp_path, monkeypatch):
  before = jax.config.jax_compilation_cache_dir
  try:
    jax.config.update('jax_compilation_cache_dir', None)
    runtime.enable_compilation_cache('')
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.setenv('HOME', str(tmp_path))
    runtime.enable_compilation_cache('~/xla')
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'xla')
    runtime.enable_compilation_cache(str(tmp_path / 'other'))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'xla')
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
