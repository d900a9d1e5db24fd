"""SGD with momentum and AdamW: options, weight decay, frozen parameters."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maskrcnn_jax import override
from maskrcnn_jax.errors import invalid
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.optimization import parameters, schedule

# Values of `optimizer.kind`.
KINDS = ('sgd', 'adamw')


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
  """Options of the optimizer; the defaults are Habana's.

  Attributes:
    kind: `sgd` with momentum, or `adamw` (Loshchilov and Hutter 2019).
    learning_rate: after the warm-up.
    tuned_batch_size: batch size of this rate; `config.load_config` scales the
      rate linearly to another batch size. None to never scale.
    accumulate_steps: parts of a batch whose gradients are computed one after
      another and averaged, for a batch that does not fit into the memory; see
      `accumulation`.
    warmup_steps: length of the linear warm-up.
    warmup_learning_rate: at step 0.
    schedule: `steps`, or `cosine`: half a wave down to `final_factor`.
    num_steps: length of the schedule; None: that of the training, which
      `make_optimizer` fills in.
    decay_steps: steps at which the rate changes; below 1: shares of
      `num_steps`.
    decay_factors: of `learning_rate`, from each of `decay_steps` on.
    inclusive_decay: the rate changes after the step, as in Habana, instead of
      at the step.
    final_factor: of `learning_rate`, at the end of a cosine.
    cosine_after_warmup: the wave begins when the warm-up ends, instead of at
      step 0, where the warm-up ends on it.
    momentum: of SGD.
    adam_decays: of the means of gradients and of their squares, in AdamW.
    adam_epsilon: added to the root of the mean of squares.
    weight_decay: of SGD: factor of half the squares, added to the loss, so that
      it enters the momentum. Of AdamW: decoupled, times the learning rate.
    decayed: parameters with weight decay, see `parameters.decayed_parameters`.
    layer_decay: factor of the learning rate from a layer of the backbone to the
      one before it; None: one rate for all.
    bias_gradient_factor: multiplies gradients of biases; 2 in Habana, after
      Detectron.
    rate_in_momentum: the rate multiplies the gradients before the momentum
      (Keras), not after (TensorFlow 1, PyTorch); only differs where the rate
      changes.
    clip_global_norm: largest norm of the gradients; None for no clipping.
    ema_decay: decay of an exponential moving average of the parameters, such as
      0.999, which is used to evaluate and detect; None for no average.
  """

  kind: str = 'sgd'
  learning_rate: float = 0.005
  tuned_batch_size: int | None = None
  accumulate_steps: int = 1
  warmup_steps: int = 1000
  warmup_learning_rate: float = 0.0
  schedule: str = 'steps'
  num_steps: int | None = None
  decay_steps: tuple[float, ...] = (240000, 320000)
  decay_factors: tuple[float, ...] = (0.1, 0.01)
  inclusive_decay: bool = True
  final_factor: float = 0.0
  cosine_after_warmup: bool = False
  momentum: float = 0.9
  adam_decays: tuple[float, float] = (0.9, 0.999)
  adam_epsilon: float = 1e-8
  weight_decay: float = 1e-4
  decayed: str = 'kernels'
  layer_decay: float | None = None
  bias_gradient_factor: float = 2.0
  rate_in_momentum: bool = False
  clip_global_norm: float | None = None
  ema_decay: float | None = None

  def __post_init__(self):
    for name, known in (
      ('kind', KINDS),
      ('schedule', schedule.SCHEDULES),
      ('decayed', parameters.DECAYED),
    ):
      if getattr(self, name) not in known:
        wanted = f'one of {", ".join(known)}'
        raise invalid(f'optimizer.{name}', getattr(self, name), wanted)
    if self.accumulate_steps < 1:
      name = 'optimizer.accumulate_steps'
      raise invalid(name, self.accumulate_steps, 'at least 1')
    for name in ('ema_decay', 'layer_decay'):
      value = getattr(self, name)
      if value is not None and not 0.0 < value < 1.0:
        wanted = 'between 0 and 1, or None'
        raise invalid(f'optimizer.{name}', value, wanted)
    if len(self.decay_steps) != len(self.decay_factors):
      wanted = f'as many as optimizer.decay_factors, {self.decay_factors}'
      raise invalid('optimizer.decay_steps', self.decay_steps, wanted)

  @property
  def depends_on_length(self) -> bool:
    """Whether the learning rate depends on `num_steps`."""
    has_shares = any(0.0 < x < 1.0 for x in self.decay_steps)
    return self.schedule == 'cosine' or has_shares


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """The optimizer of a model.

  Attributes:
    frozen_stages: of the backbone; their parameters have no momentum.
    backbone: options of the backbone, which tell the layers of its parameters
      for `layer_decay`; None: not known.
  """

  options: OptimizerOptions
  frozen_stages: int
  backbone: Any = None

  def trainable(self, params: Any) -> Any:
    """Bools in the structure of the parameters."""
    return parameters.trainable_parameters(params, self.frozen_stages)

  def decay_loss(self, params: Any) -> jax.Array:
    """Coupled weight decay, a term of the loss; 0 for AdamW."""
    if self.options.kind == 'adamw':
      return jnp.float32(0.0)
    trainable, options = self.trainable(params), self.options
    return weight_decay_loss(
      params, trainable, options.weight_decay, options.decayed
    )

  def transformation(
    self, params: Any
  ) -> optax.GradientTransformationExtraArgs:
    """The optax transformation for these parameters."""
    options, factors = self.options, None
    if options.layer_decay is not None:
      factors = self._rate_factors(params)
    return transformation(options, params, self.trainable(params), factors)

  def _rate_factors(self, params):
    """Factors of the learning rate by layer."""
    if self.backbone is None or self.backbone.num_layers is None:
      wanted = 'None for this backbone, whose parameters have no layers'
      decay = self.options.layer_decay
      raise invalid('optimizer.layer_decay', decay, wanted)
    return parameters.rate_factors(
      params,
      self.options.layer_decay,
      self.backbone.num_layers,
      self.backbone.layer_of,
    )


def make_optimizer(
  model: MaskRCNN,
  optimizer_config: Mapping[str, Any],
  num_steps: int | None = None,
) -> Optimizer:
  """The optimizer of a model.

  Args:
    model: to train.
    optimizer_config: fields of `OptimizerOptions` that differ from the default.
    num_steps: length of the training, for schedules that depend on it.
  """
  options = OptimizerOptions()
  options = OptimizerOptions(
    **override.changes(options, optimizer_config, 'optimizer')
  )
  if options.depends_on_length and options.num_steps is None:
    options = dataclasses.replace(options, num_steps=num_steps)
  # The backbone's own option, so that it stops the gradients of exactly those
  # parameters that have no update.
  return Optimizer(options, model.backbone.num_frozen, model.backbone)


def transformation(
  options: OptimizerOptions,
  params: Any,
  trainable: Any,
  rate_factors: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """SGD with momentum or AdamW.

  Frozen parameters have no update and no state. Weight decay of SGD is part of
  the loss, see `weight_decay_loss`.

  Args:
    params: of the model, for their names.
    trainable: bools in the structure of the parameters.
    rate_factors: floats in the structure of the parameters, of the learning
      rate; None: 1.

  Returns:
    A transformation whose `update` also takes `step` for the learning rate. A
    counter of its own would differ from the state's after a skipped step.
  """
  parts = [_scale_by_rate(schedule.learning_rate(options))]
  if rate_factors is not None:
    parts.append(_scale_each(rate_factors))
  if options.kind == 'adamw':
    parts = _adamw(options, params) + parts
  else:
    momentum = optax.trace(decay=options.momentum)
    parts.insert(len(parts) if options.rate_in_momentum else 0, momentum)
  if options.bias_gradient_factor != 1.0:
    parts.insert(0, _scale_biases(options.bias_gradient_factor))
  if options.clip_global_norm is not None:
    parts.insert(0, optax.clip_by_global_norm(options.clip_global_norm))
  labels = jax.tree.map(lambda x: 'train' if x else 'freeze', trainable)
  return optax.multi_transform(
    {'train': optax.chain(*parts), 'freeze': optax.set_to_zero()}, labels
  )


def _adamw(options, params):
  """The direction of AdamW, whose decay the learning rate multiplies too."""
  return [
    optax.scale_by_adam(*options.adam_decays, options.adam_epsilon),
    optax.add_decayed_weights(
      options.weight_decay,
      parameters.decayed_parameters(params, options.decayed),
    ),
  ]


@jax.named_scope('weight_decay')
def weight_decay_loss(
  params: Any, trainable: Any, factor: float, decayed: str = 'kernels'
) -> jax.Array:
  """Coupled weight decay: `factor` times half the squared parameters.

  Args:
    trainable: bools in the structure of the parameters.
    decayed: which of the trainable ones, see `parameters.decayed_parameters`.
  """
  decayed = parameters.decayed_parameters(params, decayed)
  leaves = map(jax.tree.leaves, (params, trainable, decayed))
  squares = [jnp.sum(jnp.square(x)) for x, *flags in zip(*leaves) if all(flags)]
  return 0.5 * factor * sum(squares, jnp.float32(0.0))


def _scale_by_rate(rate_at):
  def update(updates, state, params=None, *, step, **extra):
    del params, extra
    rate = rate_at(step)
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


def _scale_each(factors):
  """Multiplies every update by its own factor."""

  def scale(factor, x):
    # Stands for a frozen parameter.
    return x if isinstance(x, optax.MaskedNode) else x * factor

  def update(updates, state, params=None):
    del params
    return jax.tree.map(scale, factors, updates), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
