"""Learning rate as a function of the step: warm-up, steps or a cosine."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maskrcnn_jax.errors import invalid

# Values of `optimizer.schedule`.
SCHEDULES = ('steps', 'cosine')


def learning_rate(options: Any) -> Callable[[jax.Array], jax.Array]:
  """The learning rate as a function of the step, which counts from 0.

  Args:
    options: an `OptimizerOptions`.

  Returns:
    A function that raises `UserError` if the rate depends on the length of
    training and `options.num_steps` is None.
  """

  def schedule(step):
    step = jnp.asarray(step)
    rate, end = (_cosine if options.schedule == 'cosine' else _steps)(
      options, step
    )
    if not options.warmup_steps:
      return rate
    start = options.warmup_learning_rate
    rise = (end - start) / options.warmup_steps
    warm = start + step.astype(jnp.float32) * rise
    return jnp.where(step < options.warmup_steps, warm, rate)

  return schedule


def decay_steps(options: Any) -> tuple[int, ...]:
  """The steps at which the rate changes, of shares of the training too."""
  return tuple(
    round(x * _length(options)) if 0.0 < x < 1.0 else int(x)
    for x in options.decay_steps
  )


def _steps(options, step):
  """The rate, and that at the end of the warm-up."""
  rate = jnp.float32(options.learning_rate)
  for boundary, factor in zip(decay_steps(options), options.decay_factors):
    passed = step > boundary if options.inclusive_decay else step >= boundary
    rate = jnp.where(passed, options.learning_rate * factor, rate)
  return rate, options.learning_rate


def _cosine(options, step):
  """The rate, and that at the end of the warm-up."""
  first = options.warmup_steps if options.cosine_after_warmup else 0
  cosine = optax.cosine_decay_schedule(
    options.learning_rate,
    max(_length(options) - first, 1),
    options.final_factor,
  )
  return cosine(step - first), cosine(options.warmup_steps - first)


def _length(options) -> int:
  if options.num_steps is None:
    wanted = 'the number of steps of the training, which the rate depends on'
    raise invalid('optimizer.num_steps', None, wanted)
  return options.num_steps
