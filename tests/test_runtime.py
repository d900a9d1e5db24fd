"""The backend is the one asked for, or the error says what is there."""

import logging

import jax
import pytest

from maskrcnn_jax import runtime


@pytest.fixture
def only_the_cpu():
  if jax.default_backend() != 'cpu':
    pytest.skip('an accelerator is present')


def test_auto_takes_the_cpu_with_a_warning(only_the_cpu, caplog):
  with caplog.at_level(logging.WARNING):
    assert runtime.pick_backend('auto') == 'cpu'
  assert 'no accelerator' in caplog.text


def test_cpu_is_taken_without_a_warning(only_the_cpu, caplog):
  with caplog.at_level(logging.WARNING):
    assert runtime.pick_backend('cpu') == 'cpu'
  assert not caplog.text


@pytest.mark.parametrize('name', ['gpu', 'tpu', 'hpu'])
def test_a_missing_backend_is_an_error_that_says_what_is_there(
  only_the_cpu, name
):
  with pytest.raises(ValueError, match=rf'{name}.*finds only \d+ cpu'):
    runtime.pick_backend(name)


def test_an_unknown_backend_lists_the_known_ones():
  with pytest.raises(ValueError, match='auto, cpu, gpu, tpu, hpu'):
    runtime.pick_backend('cuda')


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
