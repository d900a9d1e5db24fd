"""Programs to compile ahead of time: the training step, and detection.

They are traced from shapes, with the functions and shardings of `train` and
`eval`; no array is made.
"""

from collections.abc import Callable

import jax

from maskrcnn_jax.distributed import arrays, model_sharding
from maskrcnn_jax.distributed import mesh as mesh_lib
from maskrcnn_jax.inference import detection
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.optimization.optimizer import make_optimizer
from maskrcnn_jax.planning import topologies
from maskrcnn_jax.training import train_state, train_step


def trace_step(config, spec, topology: topologies.Topology):
  """The training step of a config, traced for a topology.

  `spec` is that of the global batch, see `input_pipeline.batch_spec`.
  """
  model, mesh = _sharded_model(config, topology)
  # The length is a number in the program, whatever it is.
  optimizer = make_optimizer(model, config.optimizer, num_steps=1)
  batch = _batch(spec)
  key = jax.eval_shape(lambda: jax.random.key(0))
  state = jax.eval_shape(
    lambda key: train_state.init_state(model, optimizer, batch, key), key
  )
  shard_state = mesh_lib.config_shard_state(config)
  shardings = mesh_lib.state_shardings(state, mesh, shard_state)
  step = train_step.jit_train_step(model, optimizer, mesh, shardings)
  return step.trace(state, batch, key)


def trace_inference(config, spec, topology: topologies.Topology):
  """Detection in a batch, traced for a topology; see `trace_step`.

  `spec` has `INPUTS` alone.
  """
  model, mesh = _sharded_model(config, topology)
  variables = jax.eval_shape(
    lambda key: train_state.init_variables(model, key), jax.random.key(0)
  )
  inputs = (_batch(spec)[x] for x in INPUTS['inference'])
  return detection.jit_detect(model, mesh).trace(variables, *inputs)


TRACED = {'step': trace_step, 'inference': trace_inference}
# Arrays of the batch, where a program does not take all of them.
INPUTS = {'inference': ('images', 'image_sizes')}


def defined_flops(trace: Callable, config, spec) -> float:
  """Operations of a program on one device, counted before compilation.

  The compiler for GPUs reports none, and that for CPUs one group of those of
  `heads.skip_padding`. In the form for TPUs products are as they are defined,
  see `measure.count_flops`.

  Args:
    trace: of `TRACED`.
    config: of the model.
    spec: of the batch of one device.
  """
  traced = trace(config, spec, topologies.find('cpu:1'))
  lowered = traced.lower(lowering_platforms=('tpu',))
  return lowered.cost_analysis()['flops']


def _sharded_model(config, topology):
  mesh = mesh_lib.make_mesh(
    spatial=config.get('runtime', {}).get('spatial', 1),
    devices=topology.devices,
  )
  model = MaskRCNN.from_config(config.model)
  shard_state = mesh_lib.config_shard_state(config)
  return model_sharding.shard_model(model, mesh, shard_state), mesh


def _batch(spec):
  """Shapes of the arrays that devices get."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(tuple(x.shape), x.dtype.as_numpy_dtype),
    {k: x for k, x in spec.items() if k not in arrays.HOST_KEYS},
  )
