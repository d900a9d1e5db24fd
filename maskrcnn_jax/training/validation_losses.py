"""Validation losses: the terms of the training loss on the evaluation set.

Every image counts as a batch of its own, and samples its anchors and RoIs by
its id. So the means over the images depend neither on the batch size nor on how
many devices and processes share the work, and two evaluations differ only by
the parameters. Nothing is updated; batch norm takes what it has stored.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from maskrcnn_jax.distributed import arrays
from maskrcnn_jax.distributed import mesh as mesh_lib
from maskrcnn_jax.evaluation import scores
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.structures import Instances
from maskrcnn_jax.training import class_checks, train_step


class ValidationLosses:
  """Computes validation losses; keeps the compiled program between calls."""

  def __init__(self, model: MaskRCNN, mesh):
    """Compiles nothing yet."""
    self._mesh = mesh
    self._num_classes = model.num_classes
    replicated = mesh_lib.replicated(mesh)
    self._losses = jax.jit(
      functools.partial(image_losses, model),
      in_shardings=(
        replicated,
        mesh_lib.input_shardings(mesh),
        mesh_lib.batch_sharding(mesh),
      ),
      out_shardings=replicated,
    )

  def __call__(
    self,
    variables,
    batches: Iterable[Mapping],
    heartbeat: Callable[[int], None],
  ) -> dict[str, float]:
    """Means over the images, the same on all hosts; {} without an image.

    Args:
      variables: of the model, whole on every device.
      batches: this host's, of `eval_batches` with instances.
      heartbeat: takes the number of every batch, from 1.

    Returns:
      The keys `scores.LOSSES`: the five terms, and their sum.

    Raises:
      ValueError: an instance has a class that the model lacks.
    """
    found, previous = {term: [] for term in scores.TERMS}, None
    for number, batch in enumerate(batches, start=1):
      heartbeat(number)
      class_checks.check_batch_classes(batch, self._num_classes)
      losses = self._losses(
        variables,
        arrays.put_batch(batch, self._mesh),
        arrays.put_rows(
          (batch['image_ids'] & 0xFFFFFFFF).astype(np.uint32), self._mesh
        ),
      )
      # The device has work while the values before are fetched.
      _add(found, previous)
      previous = losses
    _add(found, previous)
    count = len(found['mask'])
    if not count:
      return {}
    # Exact sums, which do not depend on the order of the images.
    means = {
      f'{scores.LOSS}_{term}': math.fsum(values) / count
      for term, values in found.items()
    }
    return {scores.LOSS: math.fsum(means.values()), **means}


def image_losses(
  model: MaskRCNN,
  variables: Mapping[str, Any],
  batch: Mapping[str, Any],
  seeds: jax.Array,
) -> dict[str, jax.Array]:
  """The loss terms of every image, as of a batch that holds it alone.

  Args:
    batch: `images`, `image_sizes`, `instances` and `valid`.
    seeds: `[batch]` uint32, for the samples of anchors and RoIs of each image.

  Returns:
    `[batch]` float32 by term, and `valid` as it was given.
  """
  sampling = dataclasses.replace(model.sampling, num_mask_rois=None)
  model = model.clone(sampling=sampling)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), seeds)
  rpn_keys, sampling_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
  valid = batch['valid']
  instances = Instances(**batch['instances'])
  instances = instances.replace(valid=instances.valid & valid[:, None])
  outputs = model.apply(
    variables,
    batch['images'],
    batch['image_sizes'],
    instances,
    valid,
    keys=sampling_keys,
    train=False,
  )
  targets = train_step.rpn_targets(
    model, batch['images'].shape[1:3], instances, valid, rpn_keys
  )

  def one_image(*row):
    batch_of_one = jax.tree.map(lambda x: x[None], row)
    return train_step.training_losses(model, *batch_of_one)

  losses = jax.vmap(one_image)(outputs, instances, valid, targets)
  return {**losses, 'valid': valid}


def _add(found: dict[str, list[float]], losses) -> None:
  """Appends the values of a batch's images; waits for the device."""
  if losses is None:
    return
  losses = jax.tree.map(np.asarray, losses)
  for term, values in found.items():
    values += losses[term][losses['valid']].tolist()
