"""Train state: parameters, statistics, optimizer and an optional average.

The exponential moving average of the parameters lags behind them and is less
noisy, so it often detects better before the learning rate has decayed.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.optimization.optimizer import Optimizer, make_optimizer
from maskrcnn_jax.structures import Instances


@flax.struct.dataclass
class TrainState:
  """Everything that a training step changes.

  Attributes:
    step: int32, number of steps taken.
    params: float32 parameters of the model.
    batch_stats: arrays of batch norm; empty without it.
    opt_state: state of the optimizer.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any

  def variables(self) -> dict[str, Any]:
    """Variables for `model.apply`."""
    return {'params': self.params, 'batch_stats': self.batch_stats}


@flax.struct.dataclass
class AveragedTrainState(TrainState):
  """Train state with the moving average of its parameters.

  A separate type, so that states, programs and checkpoints of runs without an
  average have no field for it.

  Attributes:
    ema: float32, in the structure of `params`.
  """

  ema: Any

  def variables(self) -> dict[str, Any]:
    """Variables for `model.apply`, with the averaged parameters."""
    return {'params': self.ema, 'batch_stats': self.batch_stats}


def create_train_state(
  model: MaskRCNN,
  optimizer_config: Mapping[str, Any],
  batch: Mapping[str, Any],
  key: jax.Array,
) -> tuple[TrainState, Optimizer]:
  """Initial state of a model, and its optimizer.

  Args:
    model: to train.
    optimizer_config: fields of `OptimizerOptions` that differ from the default.
    batch: any batch of the run; only its shapes are used.
    key: random key of the parameters.
  """
  optimizer = make_optimizer(model, optimizer_config)
  init = functools.partial(init_state, model, optimizer, batch)
  # The program runs once, so optimizing it does not pay on the CPU, and less
  # may be asked for.
  is_least = jax.config.read('jax_disable_most_optimizations')
  is_quick = jax.default_backend() == 'cpu' and not is_least
  options = {'xla_backend_optimization_level': 1} if is_quick else None
  return jax.jit(init, compiler_options=options)(key), optimizer


def init_state(
  model: MaskRCNN,
  optimizer: Optimizer,
  batch: Mapping[str, Any],
  key: jax.Array,
) -> TrainState:
  """Initial state of a model, not compiled; see `create_train_state`."""
  variables = init_variables(
    model,
    key,
    batch['images'].shape[1:3],
    batch['instances']['masks'].shape[1:],
  )
  return initial_state(optimizer, variables)


def initial_state(
  optimizer: Optimizer, variables: Mapping[str, Any]
) -> TrainState:
  """Initial state with given `params` and `batch_stats`."""
  params = variables['params']
  state = TrainState(
    step=jnp.int32(0),
    params=params,
    batch_stats=variables['batch_stats'],
    opt_state=optimizer.transformation(params).init(params),
  )
  if optimizer.options.ema_decay is None:
    return state
  return start_average(state)


def init_variables(
  model: MaskRCNN,
  key: jax.Array,
  canvas: tuple[int, int] = (64, 64),
  masks: tuple[int, int, int] = (1, 28, 28),
) -> dict[str, Any]:
  """Initial `params` and `batch_stats`, which do not depend on the sizes.

  Args:
    model: to initialize.
    key: random key.
    canvas: (height, width) of the image that is passed through the model.
    masks: shape of the masks of its instances.
  """
  params_key, sampling_key = jax.random.split(key)
  instances = Instances(
    boxes=jnp.zeros((1, masks[0], 4)),
    classes=jnp.zeros((1, masks[0]), jnp.int32),
    masks=jnp.zeros((1, *masks), jnp.uint8),
    valid=jnp.zeros((1, masks[0]), bool),
  )
  variables = model.init(
    {'params': params_key, 'sampling': sampling_key},
    jnp.zeros((1, *canvas, 3)),
    jnp.zeros((1, 2)),
    instances,
  )
  return {'batch_stats': {}, **variables}


def start_average(state: TrainState) -> AveragedTrainState:
  """The state with an average equal to its parameters."""
  # Copied, since a step donates every array once.
  ema = jax.tree.map(jnp.copy, state.params)
  return AveragedTrainState(**{**vars(state), 'ema': ema})


def restart_average(state: TrainState) -> TrainState:
  """The state with its average, if any, reset to its parameters."""
  has_average = isinstance(state, AveragedTrainState)
  return start_average(state) if has_average else state


def advance_average(state: TrainState, decay: float | None) -> TrainState:
  """The state with an updated average.

  Its decay is `min(decay, (1 + step) / (10 + step))`: the ramp of TensorFlow's
  ExponentialMovingAverage, which soon forgets the initial values.

  Args:
    state: with new parameters and the number of steps before this one.
    decay: of the average; None if there is none.
  """
  if decay is None:
    return state
  step = state.step.astype(jnp.float32)
  part = jnp.maximum(jnp.float32(1.0 - decay), 9.0 / (10.0 + step))
  # In this form, parameters that do not change (frozen ones) stay exact.
  ema = jax.tree.map(
    lambda old, new: old + part * (new - old), state.ema, state.params
  )
  return state.replace(ema=ema)
