"""Sharding constraints on the arrays inside a model."""

import dataclasses
import functools

import jax
from jax.sharding import Mesh

from maskrcnn_jax.distributed import mesh as mesh_lib
from maskrcnn_jax.models.layout import Layout
from maskrcnn_jax.models.mask_rcnn import MaskRCNN


def shard_model(
  model: MaskRCNN,
  mesh: Mesh,
  shard_state: str = 'none',
  smallest: int = mesh_lib.SMALLEST_SPLIT,
) -> MaskRCNN:
  """The model with sharding constraints on its arrays; its values are the same.

  Args:
    model: any.
    mesh: of the batches.
    shard_state: see `state_shardings`.
    smallest: see `state_shardings`.
  """
  layout = Layout()
  if mesh.shape['spatial'] > 1:
    layout = dataclasses.replace(
      layout, split=_SplitHeight(mesh), whole=_WholeImages(mesh)
    )
  if shard_state != 'none':
    layout = dataclasses.replace(
      layout, parameters=_GatherParameters(mesh, smallest)
    )
  return model.clone(layout=layout)


@dataclasses.dataclass(frozen=True)
class _SplitHeight:
  """Splits the height of maps where that is even.

  A dataclass, so that the model can be hashed.
  """

  mesh: Mesh

  def __call__(self, tree):
    return jax.tree.map(self._constrain, tree)

  def _constrain(self, x):
    even = x.shape[1] % self.mesh.shape['spatial'] == 0
    even = even and x.shape[1] >= mesh_lib.SMALLEST_HEIGHT
    sharding = mesh_lib.image_sharding if even else mesh_lib.batch_sharding
    return jax.lax.with_sharding_constraint(x, sharding(self.mesh))


@dataclasses.dataclass(frozen=True)
class _WholeImages:
  """Gives every device the whole height of its images."""

  mesh: Mesh

  def __call__(self, tree):
    return jax.lax.with_sharding_constraint(
      tree, mesh_lib.batch_sharding(self.mesh)
    )


@dataclasses.dataclass(frozen=True)
class _GatherParameters:
  """Gathers parameters on every device, and keeps their gradients split.

  The compiler alone would sum whole gradients on every device before it takes a
  part of them.
  """

  mesh: Mesh
  smallest: int

  def __call__(self, params):
    return jax.tree.map(
      lambda x: _gathered(
        x,
        mesh_lib.replicated(self.mesh),
        mesh_lib.split_largest(x.shape, self.mesh, self.smallest),
      ),
      params,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(x, whole, part):
  del part
  return jax.lax.with_sharding_constraint(x, whole)


def _gathered_forward(x, whole, part):
  return _gathered(x, whole, part), None


def _gathered_backward(unused_whole, part, unused_residuals, gradient):
  return (jax.lax.with_sharding_constraint(gradient, part),)


_gathered.defvjp(_gathered_forward, _gathered_backward)
