"""SGD with momentum: options, schedule, weight decay, frozen parameters."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maskrcnn_jax.errors import invalid


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
  """Options of the optimizer; the defaults are Habana's.

  Attributes:
    learning_rate: after the warm-up.
    tuned_batch_size: batch size of this rate; `config.load_config` scales the
      rate linearly to another batch size. None to never scale.
    warmup_steps: length of the linear warm-up.
    warmup_learning_rate: at step 0.
    decay_steps: steps at which the rate changes.
    decay_factors: of `learning_rate`, from each of `decay_steps` on.
    inclusive_decay: the rate changes after the step, as in Habana, instead of
      at the step.
    momentum: of SGD.
    weight_decay: factor of half the squared kernels, added to the loss; biases
      and norms do not decay.
    bias_gradient_factor: multiplies gradients of biases; 2 in Habana, after
      Detectron.
    rate_in_momentum: the rate multiplies the gradients before the momentum
      (Keras), not after (TensorFlow 1, PyTorch); only differs where the rate
      changes.
    clip_global_norm: largest norm of the gradients; None for no clipping.
    ema_decay: decay of an exponential moving average of the parameters, such as
      0.999, which is used to evaluate and detect; None for no average.
  """

  learning_rate: float = 0.005
  tuned_batch_size: int | None = None
  warmup_steps: int = 1000
  warmup_learning_rate: float = 0.0
  decay_steps: tuple[int, ...] = (240000, 320000)
  decay_factors: tuple[float, ...] = (0.1, 0.01)
  inclusive_decay: bool = True
  momentum: float = 0.9
  weight_decay: float = 1e-4
  bias_gradient_factor: float = 2.0
  rate_in_momentum: bool = False
  clip_global_norm: float | None = None
  ema_decay: float | None = None

  def __post_init__(self):
    if self.ema_decay is not None and not 0.0 < self.ema_decay < 1.0:
      wanted = 'between 0 and 1, or None'
      raise invalid('optimizer.ema_decay', self.ema_decay, wanted)
    if len(self.decay_steps) != len(self.decay_factors):
      wanted = f'as many as optimizer.decay_factors, {self.decay_factors}'
      raise invalid('optimizer.decay_steps', self.decay_steps, wanted)


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """The optimizer of a model.

  Attributes:
    frozen_stages: of the backbone; their parameters have no momentum.
  """

  options: OptimizerOptions
  frozen_stages: int

  def trainable(self, params: Any) -> Any:
    """Bools in the structure of the parameters."""
    return trainable_parameters(params, self.frozen_stages)

  def transformation(
    self, params: Any
  ) -> optax.GradientTransformationExtraArgs:
    """The optax transformation for these parameters."""
    return sgd(self.options, self.trainable(params))


def learning_rate(
  options: OptimizerOptions,
) -> Callable[[jax.Array], jax.Array]:
  """The learning rate as a function of the step, which counts from 0."""

  def schedule(step):
    step = jnp.asarray(step)
    rate = jnp.float32(options.learning_rate)
    for boundary, factor in zip(options.decay_steps, options.decay_factors):
      passed = step > boundary if options.inclusive_decay else step >= boundary
      rate = jnp.where(passed, options.learning_rate * factor, rate)
    if not options.warmup_steps:
      return rate
    start = options.warmup_learning_rate
    rise = (options.learning_rate - start) / options.warmup_steps
    warm = start + step.astype(jnp.float32) * rise
    return jnp.where(step < options.warmup_steps, warm, rate)

  return schedule


def sgd(
  options: OptimizerOptions, trainable: Any
) -> optax.GradientTransformationExtraArgs:
  """SGD with momentum; frozen parameters have no update and no momentum.

  Weight decay is part of the loss (see `weight_decay_loss`), so it enters the
  momentum, as in Habana.

  Args:
    trainable: bools in the structure of the parameters.

  Returns:
    A transformation whose `update` also takes `step` for the learning rate. A
    counter of its own would differ from the state's after a skipped step.
  """
  scale = _scale_by_rate(learning_rate(options))
  momentum = optax.trace(decay=options.momentum)
  parts = [scale, momentum] if options.rate_in_momentum else [momentum, scale]
  if options.bias_gradient_factor != 1.0:
    parts.insert(0, _scale_biases(options.bias_gradient_factor))
  if options.clip_global_norm is not None:
    parts.insert(0, optax.clip_by_global_norm(options.clip_global_norm))
  labels = jax.tree.map(lambda x: 'train' if x else 'freeze', trainable)
  return optax.multi_transform(
    {'train': optax.chain(*parts), 'freeze': optax.set_to_zero()}, labels
  )


def weight_decay_loss(params: Any, trainable: Any, factor: float) -> jax.Array:
  """Coupled weight decay: `factor` times half the squared trainable kernels."""
  leaves = jax.tree.leaves_with_path(params)
  squares = [
    jnp.sum(jnp.square(x))
    for (path, x), is_trainable in zip(leaves, jax.tree.leaves(trainable))
    if is_trainable and path[-1].key == 'kernel'
  ]
  return 0.5 * factor * sum(squares, jnp.float32(0.0))


def trainable_parameters(
  params: Mapping[str, Any], frozen_stages: int
) -> Mapping[str, Any]:
  """Bools in the structure of `params`: False in frozen backbone stages.

  They are counted as in `ResNetOptions.frozen_stages`.
  """
  stages = ['stem'] + [f'stage{level}' for level in range(2, 6)]
  frozen = [['backbone', stage] for stage in stages[:frozen_stages]]
  return jax.tree.map_with_path(
    lambda path, _: [key.key for key in path[:2]] not in frozen, params
  )


def _scale_by_rate(schedule):
  def update(updates, state, params=None, *, step, **extra):
    del params, extra
    rate = schedule(step)
    return jax.tree.map(lambda x: -rate * x, updates), state

  return optax.GradientTransformationExtraArgs(
    lambda _: optax.EmptyState(), update
  )


def _scale_biases(factor):
  def update(updates, state, params=None):
    del params
    scaled = jax.tree.map_with_path(
      lambda path, x: x * factor if path[-1].key == 'bias' else x, updates
    )
    return scaled, state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
