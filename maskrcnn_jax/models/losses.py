"""Loss terms of the heads, from their outputs and targets.

All of them are float32 and normalised over the global batch. A term without
targets is exactly 0, with zero gradient.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from maskrcnn_jax.errors import invalid
from maskrcnn_jax.models.heads import BoxOutputs, RPNOutputs
from maskrcnn_jax.models.targets import RPNTargets


@dataclasses.dataclass(frozen=True)
class LossOptions:
  """Normalisation and shape of the loss terms; the defaults are Habana's.

  Attributes:
    rpn_normalizer: 'levels': objectness is divided by images times
      `rpn_samples`, the box term is a mean over the coordinates of all matched
      anchors per level, summed over the levels (Habana). 'sampled': sums over
      the sampled anchors divided by their number (torchvision). 'images': the
      same sums divided by images times `rpn_samples` (Detectron2), which
      differs where an image has fewer anchors.
    rpn_samples: anchors sampled per image, for 'levels' and 'images'.
    rpn_delta: where the Huber loss of the RPN turns linear; 0: L1 loss
      (Detectron2).
    box_normalizer: 'foreground': mean over the coordinates of foreground RoIs
      (Habana). 'rois': sum divided by the number of all RoIs (torchvision).
    box_delta: where the Huber loss of the box head turns linear; 0: L1 loss.
    smooth_l1: Huber losses are divided by delta, which makes the slope 1
      (torchvision's smooth L1).
  """

  rpn_normalizer: str = 'levels'
  rpn_samples: int = 256
  rpn_delta: float = 1.0 / 9.0
  box_normalizer: str = 'foreground'
  box_delta: float = 1.0
  smooth_l1: bool = False

  def __post_init__(self):
    for name, known in (
      ('rpn_normalizer', ('levels', 'sampled', 'images')),
      ('box_normalizer', ('foreground', 'rois')),
    ):
      value = getattr(self, name)
      if value not in known:
        wanted = f'one of {", ".join(map(repr, known))}'
        raise invalid(f'model.losses.{name}', value, wanted)


@jax.named_scope('rpn_losses')
def rpn_losses(
  outputs: RPNOutputs,
  targets: RPNTargets,
  valid: jax.Array,
  options: LossOptions,
) -> dict[str, jax.Array]:
  """Objectness and box loss of the region proposal network.

  Args:
    outputs: RPN head outputs by level.
    targets: RPN targets by level.
    valid: `[batch]` bool, the images that contribute.
    options: see `LossOptions`.

  Returns:
    Scalars `rpn_objectness` and `rpn_box`. Faster R-CNN, Eq. 1.
  """
  objectness = 0.0
  box_sums, box_counts = [], []
  for level, logits in outputs.objectness_logits.items():
    labels = targets.labels[level]
    entropy = optax.sigmoid_binary_cross_entropy(logits, labels == 1)
    objectness += jnp.sum(entropy, where=labels >= 0)
    deltas = targets.box_deltas[level]
    huber = _huber(
      outputs.box_deltas[level], deltas, options.rpn_delta, options
    )
    if options.rpn_normalizer == 'levels':
      # Habana counts the coordinates whose target is not exactly 0.
      counted = targets.matched[level][..., None] & (deltas != 0.0)
    else:
      counted = jnp.broadcast_to((labels == 1)[..., None], deltas.shape)
    box_sums.append(jnp.sum(huber, where=counted))
    box_counts.append(jnp.sum(counted))
  num_sampled = jnp.sum(valid) * options.rpn_samples
  if options.rpn_normalizer == 'sampled':
    num_sampled = sum(jnp.sum(x >= 0) for x in targets.labels.values())
  if options.rpn_normalizer == 'levels':
    box = sum(
      _divide(total, count) for total, count in zip(box_sums, box_counts)
    )
  else:
    box = _divide(sum(box_sums), num_sampled)
  return {'rpn_objectness': _divide(objectness, num_sampled), 'rpn_box': box}


@jax.named_scope('box_losses')
def box_losses(
  outputs: BoxOutputs,
  classes: jax.Array,
  box_deltas: jax.Array,
  valid: jax.Array,
  options: LossOptions,
) -> dict[str, jax.Array]:
  """Classification and box loss of the RoIs.

  Args:
    outputs: box head outputs.
    classes: `[batch, num_rois]` int32, 0 for background.
    box_deltas: `[batch, num_rois, 4]`, targets of foreground RoIs.
    valid: `[batch, num_rois]` bool, the RoIs that contribute.
    options: see `LossOptions`.

  Returns:
    Scalars `class` and `box`. Fast R-CNN, Eq. 1 and 2.
  """
  logits = outputs.class_logits
  # Sums over few classes: a gather would have a scatter as its gradient.
  own = classes[..., None] == jnp.arange(logits.shape[-1])
  entropy = jax.nn.logsumexp(logits, axis=-1)
  entropy -= jnp.sum(logits, axis=-1, where=own)
  num_rois = jnp.sum(valid)
  foreground = valid & (classes > 0)
  deltas = jnp.sum(outputs.box_deltas, axis=2, where=own[..., None])
  huber = _huber(deltas, box_deltas, options.box_delta, options)
  total = jnp.sum(huber, where=foreground[..., None])
  if options.box_normalizer == 'foreground':
    box = _divide(total, 4 * jnp.sum(foreground))
  else:
    box = _divide(total, num_rois)
  return {
    'class': _divide(jnp.sum(entropy, where=valid), num_rois),
    'box': box,
  }


@jax.named_scope('mask_loss')
def mask_loss(
  logits: jax.Array, masks: jax.Array, foreground: jax.Array
) -> jax.Array:
  """Mean binary cross-entropy over the cells of foreground masks.

  Args:
    logits: `[batch, n, size, size]` mask logits of the class of each RoI.
    masks: `[batch, n, size, size]` targets in [0, 1].
    foreground: `[batch, n]` bool.

  Mask R-CNN, Sec. 3.
  """
  entropy = optax.sigmoid_binary_cross_entropy(logits, masks)
  total = jnp.sum(entropy, where=foreground[..., None, None])
  return _divide(total, jnp.sum(foreground) * logits.shape[-1] ** 2)


def _huber(predictions, targets, delta, options):
  if not delta:
    return jnp.abs(predictions - targets)
  loss = optax.huber_loss(predictions, targets, delta=delta)
  return loss / delta if options.smooth_l1 else loss


def _divide(total, count):
  """Mean that is 0 where the count is 0."""
  return total / jnp.maximum(count, 1).astype(jnp.float32)
