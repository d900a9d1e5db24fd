"""Train state: parameters, statistics, optimizer and an optional average.

The exponential moving average of the parameters lags behind them and is less
noisy, so it often detects better before the learning rate has decayed.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


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
