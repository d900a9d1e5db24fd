"""What a step changes: parameters, statistics, optimizer, and an average.

The average is exponential: after every step the averaged parameters go a small
part of the way to the trained ones. It lags behind and has less noise, so that
it often detects better before the learning rate has fallen.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class TrainState:
  """Everything that a step changes.

  Attributes:
    step: int32, steps taken.
    params: float32 parameters of the model.
    batch_stats: arrays of batch norm; empty without it.
    opt_state: of the optimizer.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any

  def variables(self) -> dict[str, Any]:
    """What `model.apply` takes."""
    return {'params': self.params, 'batch_stats': self.batch_stats}


@flax.struct.dataclass
class AveragedTrainState(TrainState):
  """A state that also has the moving average of its parameters.

  A type of its own, so that a run without an average has the state, the program
  and the checkpoints that it had before there was any.

  Attributes:
    ema: float32, in the structure of `params`.
  """

  ema: Any

  def variables(self) -> dict[str, Any]:
    """What `model.apply` takes to detect: the averaged parameters."""
    return {'params': self.ema, 'batch_stats': self.batch_stats}


def start_average(state: TrainState) -> AveragedTrainState:
  """The state with an average that starts at its parameters."""
  fields = dataclasses.fields(TrainState)
  # Copied, since a step takes over every array once.
  return AveragedTrainState(
    **{field.name: getattr(state, field.name) for field in fields},
    ema=jax.tree.map(jnp.copy, state.params),
  )


def restart_average(state: TrainState) -> TrainState:
  """The state with its average, if it has one, back at its parameters."""
  has_average = isinstance(state, AveragedTrainState)
  return start_average(state) if has_average else state


def advance_average(state: TrainState, decay: float | None) -> TrainState:
  """The state with its average one step further.

  Args:
    state: with new parameters, and the number of steps before this one.
    decay: share of the old average that stays, once the run is long enough;
      None: there is no average.

  Returns:
    The state, whose average went a part of `1 - min(decay, (1 + step) / (10 +
    step))` of the way: the ramp of TensorFlow's ExponentialMovingAverage, by
    which the initial values are soon forgotten.
  """
  if decay is None:
    return state
  step = state.step.astype(jnp.float32)
  part = jnp.maximum(jnp.float32(1.0 - decay), 9.0 / (10.0 + step))
  # In this form what does not change, as frozen parameters, stays exactly.
  ema = jax.tree.map(
    lambda old, new: old + part * (new - old), state.ema, state.params
  )
  return state.replace(ema=ema)
