"""Fixtures of whole runs: a data set, and programs compiled once."""

import jax
import jax.numpy as jnp
import narrow_models
import numpy as np
import pytest
import tiny_run
from jax.experimental.compilation_cache import compilation_cache

from maskrcnn_jax.training import loop, train_state
from maskrcnn_jax.weights import tensor_files, torchvision


@pytest.fixture(scope='session')
def programs(tmp_path_factory):
  """The folder of the programs that tests of runs compile."""
  return tmp_path_factory.mktemp('programs')


@pytest.fixture(scope='module')
def fast_compilation(programs):
  """Compiles every program once for all files.

  What a run of the file has traced is not traced again either, and its initial
  state is computed once.
  """
  steps, compile_step = {}, loop._compile
  jitted, states, create = {}, {}, train_state.create_train_state
  jit = jax.jit

  def jit_once(function, **options):
    try:
      name = function.func, function.args, repr((function.keywords, options))
      known = name in jitted
    except (AttributeError, TypeError):  # No partial, or of arrays.
      return jit(function, **options)
    if not known:
      jitted[name] = jit(function, **options)
    return jitted[name]

  def create_once(model, optimizer_config, batch, key):
    shapes = str(jax.tree.map(np.shape, batch))
    seed = jax.random.key_data(key).tobytes()
    name = model, str(optimizer_config), shapes, seed
    if name not in states:
      states[name] = create(model, optimizer_config, batch, key)
    # A copy, since the step is given its memory.
    state, optimizer = states[name]
    return jax.tree.map(jnp.copy, state), optimizer

  def compile_once(model, optimizer, mesh, state, inputs, key, writer):
    leaves, structure = jax.tree.flatten((state, inputs))
    kinds = tuple((x.shape, x.dtype, x.sharding) for x in leaves)
    name = model, optimizer, mesh, structure, kinds
    if name not in steps:
      steps[name] = compile_step(
        model, optimizer, mesh, state, inputs, key, writer
      )
    return steps[name]

  settings = {
    'jax_compilation_cache_dir': str(programs),
    'jax_persistent_cache_min_compile_time_secs': 0.0,
  }
  before = {name: jax.config.values[name] for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, '_compile', compile_once)
    patch.setattr(train_state, 'create_train_state', create_once)
    patch.setattr(jax, 'jit', jit_once)
    yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture(scope='session')
def dataset(tmp_path_factory):
  """The record pattern and the COCO json of `tiny_run.write_dataset`."""
  return tiny_run.write_dataset(tmp_path_factory.mktemp('dataset'))


@pytest.fixture
def config(dataset):
  return tiny_run.make_config(*dataset)


@pytest.fixture(scope='session')
def source(tmp_path_factory):
  """A file of a narrow model under torchvision's names, for four classes."""
  model = narrow_models.make_model(depth=18)
  path = tmp_path_factory.mktemp('files') / 'weights.pth'
  variables = narrow_models.random_variables(model)
  tensor_files.write(path, torchvision.state_dict(variables))
  return str(path)
