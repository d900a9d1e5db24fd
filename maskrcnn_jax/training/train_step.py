"""The training step: losses and update of the state."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maskrcnn_jax.distributed import mesh as mesh_lib
from maskrcnn_jax.models import losses as losses_lib
from maskrcnn_jax.models import targets as targets_lib
from maskrcnn_jax.models.mask_rcnn import MaskRCNN, TrainOutputs
from maskrcnn_jax.optimization import accumulation, schedule
from maskrcnn_jax.optimization.optimizer import Optimizer
from maskrcnn_jax.structures import Instances
from maskrcnn_jax.training import train_state
from maskrcnn_jax.training.train_state import TrainState


def training_losses(
  model: MaskRCNN,
  outputs: TrainOutputs,
  instances: Instances,
  valid: jax.Array,
  targets: targets_lib.RPNTargets,
) -> dict[str, jax.Array]:
  """The five loss terms of a batch by name.

  Args:
    model: for its options.
    outputs: of the model for this batch.
    instances: ground truth.
    valid: `[batch]` bool; other images have no loss.
    targets: of this batch for the RPN.

  Returns:
    Scalars `rpn_objectness`, `rpn_box`, `class`, `box` and `mask`.
  """
  rois = outputs.rois.replace(valid=outputs.rois.valid & valid[:, None])
  box_deltas = targets_lib.roi_box_targets(
    rois, instances, model.box_weights, model.plus_one
  )
  foreground = targets_lib.mask_rois(rois, model.sampling)
  masks = targets_lib.mask_targets(
    foreground,
    instances,
    outputs.mask_logits.shape[-1],
    model.mask_threshold,
  )
  return {
    **losses_lib.rpn_losses(outputs.rpn, targets, valid, model.losses),
    **losses_lib.box_losses(
      outputs.box, rois.classes, box_deltas, rois.valid, model.losses
    ),
    'mask': losses_lib.mask_loss(outputs.mask_logits, masks, foreground.valid),
  }


@jax.named_scope('rpn_targets')
def rpn_targets(
  model: MaskRCNN,
  canvas: tuple[int, int],
  instances: Instances,
  valid: jax.Array,
  keys: jax.Array,
) -> targets_lib.RPNTargets:
  """RPN targets of a batch; see `targets.rpn_targets`."""
  anchors = model.anchor_boxes(canvas)
  return model.layout.per_device(
    lambda *x: targets_lib.rpn_targets(anchors, *x, model.rpn_targets)
  )(instances, valid, keys)


def loss_fn(
  model: MaskRCNN,
  params: Any,
  batch_stats: Any,
  batch: Mapping[str, Any],
  key: jax.Array,
  part: tuple[jax.Array, int] | None = None,
) -> tuple[dict[str, jax.Array], Any]:
  """The loss terms of a batch, and the batch norm statistics after it.

  Args:
    model: to apply.
    params: its parameters.
    batch_stats: its stored statistics.
    batch: `images`, `image_sizes`, `instances` and `valid`.
    key: random key of the sampling of anchors and RoIs, and of drop path.
    part: of a larger batch, see `accumulation`, of whose sampling it has its
      rows.
  """
  rpn_key, sampling_key = jax.random.split(key)
  # The keys of `split` are those of 0 and 1.
  drop_key = jax.random.fold_in(key, 2)
  if part is not None:
    drop_key = jax.random.fold_in(drop_key, part[0])
  valid = batch['valid']
  instances = Instances(**batch['instances'])
  instances = instances.replace(valid=instances.valid & valid[:, None])
  outputs, updated = model.apply(
    {'params': model.layout.parameters(params), 'batch_stats': batch_stats},
    batch['images'],
    batch['image_sizes'],
    instances,
    valid,
    part=part,
    rngs={'sampling': sampling_key, 'drop_path': drop_key},
    mutable=['batch_stats'],
  )
  canvas = batch['images'].shape[1:3]
  keys = accumulation.row_keys(rpn_key, len(valid), part)
  targets = rpn_targets(model, canvas, instances, valid, keys)
  losses = training_losses(model, outputs, instances, valid, targets)
  return losses, updated.get('batch_stats', batch_stats)


def train_step(
  model: MaskRCNN,
  optimizer: Optimizer,
  state: TrainState,
  batch: Mapping[str, Any],
  key: jax.Array | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update of the state by a batch.

  A loss or gradient that is not finite changes only the step number.

  Args:
    model: to train.
    optimizer: of `train_state.create_train_state`.
    state: before the step.
    batch: the global batch, see the README's table.
    key: random key of the run; the step number is folded in. None for key 0.

  Returns:
    state: after the step.
    metrics: float32 scalars: the five loss terms, `l2_loss`, `total_loss`,
      `learning_rate`, `gradient_norm`, and the bool `finite`.
  """
  if key is None:
    key = jax.random.key(0)
  key = jax.random.fold_in(key, state.step)

  def total_loss(params, batch_stats, batch, part):
    losses, batch_stats = loss_fn(model, params, batch_stats, batch, key, part)
    losses['l2_loss'] = optimizer.decay_loss(params)
    return sum(losses.values()), (losses, batch_stats)

  (total, (losses, batch_stats)), gradients = accumulation.value_and_grad(
    total_loss, optimizer.options.accumulate_steps
  )(state.params, state.batch_stats, batch)
  gradient_norm = optax.tree.norm(gradients)
  finite = jnp.isfinite(total) & jnp.isfinite(gradient_norm)
  updated = _updated(optimizer, state, gradients, batch_stats, finite)
  metrics = {
    **losses,
    'total_loss': total,
    'learning_rate': schedule.learning_rate(optimizer.options)(state.step),
    'gradient_norm': gradient_norm,
    'finite': finite,
  }
  return updated.replace(step=state.step + 1), metrics


@jax.named_scope('optimizer')
def _updated(optimizer, state, gradients, batch_stats, finite):
  """The state with new parameters where `finite`; of the same step."""
  updates, opt_state = optimizer.transformation(state.params).update(
    gradients, state.opt_state, state.params, step=state.step
  )
  updated = state.replace(
    params=optax.apply_updates(state.params, updates),
    batch_stats=batch_stats,
    opt_state=opt_state,
  )
  updated = train_state.advance_average(updated, optimizer.options.ema_decay)
  return jax.tree.map(
    lambda new, old: jnp.where(finite, new, old), updated, state
  )


def jit_train_step(
  model: MaskRCNN, optimizer: Optimizer, mesh, state_shardings: Any = None
):
  """Compiled `train_step` of state, batch and key on the devices of a mesh.

  The state is donated; the batch is sharded.

  Args:
    model: to train, from `model_sharding.shard_model`.
    optimizer: of `train_state.create_train_state`.
    mesh: of `mesh.make_mesh`, possibly for ahead-of-time compilation.
    state_shardings: of `mesh.state_shardings`; None to replicate the state.
  """
  replicated = mesh_lib.replicated(mesh)
  state = replicated if state_shardings is None else state_shardings
  return jax.jit(
    functools.partial(train_step, model, optimizer),
    in_shardings=(state, mesh_lib.input_shardings(mesh), replicated),
    out_shardings=(state, replicated),
    donate_argnums=0,
    compiler_options=mesh_lib.compiler_options(mesh),
  )
