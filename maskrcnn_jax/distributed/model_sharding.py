"""Sharding constraints on the arrays inside a model."""

import dataclasses
import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec

from maskrcnn_jax.distributed import mesh as mesh_lib
from maskrcnn_jax.models import heads
from maskrcnn_jax.models.layout import Layout
from maskrcnn_jax.models.mask_rcnn import MaskRCNN


def shard_model(
  model: MaskRCNN,
  mesh: Mesh,
  shard_state: str = 'none',
  smallest: int = mesh_lib.SMALLEST_SPLIT,
) -> MaskRCNN:
  """The model with sharding constraints on its arrays; its values are the same.

  On one CPU device its mask head skips padding RoIs, if that is faster.

  Args:
    shard_state: the `kind` of `mesh.state_shardings`.
  """
  hooks = {}
  if mesh.shape['spatial'] > 1:
    hooks['split'] = _ForEachArray(_split_height, mesh)
    hooks['whole'] = _ForEachArray(_whole_images, mesh)
  if shard_state != 'none':
    hooks['parameters'] = _ForEachArray(_gather_parameter, mesh, smallest)
  if mesh.shape['data'] > 1:
    hooks['per_device'] = _PerDevice(mesh)
    if mesh.shape['spatial'] == 1:
      hooks['share'] = _Share(mesh)
  is_one_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == 'cpu'
  if is_one_cpu and heads.is_skipping_faster(
    *(model.mask_size, model.pyramid_channels),
    *(model.mask_channels, model.dtype),
  ):
    hooks['mask_head'] = heads.skip_padding
  return model.clone(layout=Layout(**hooks))


@dataclasses.dataclass(frozen=True)
class _ForEachArray:
  """Applies a function to arrays; hashable, as the model must be."""

  function: Callable[..., jax.Array]
  mesh: Mesh
  smallest: int = 0

  def __call__(self, tree):
    return jax.tree.map(lambda x: self.function(x, self), tree)


@dataclasses.dataclass(frozen=True)
class _PerDevice:
  """Runs a function of a batch on every device for its rows; hashable."""

  mesh: Mesh

  def __call__(self, function):
    rows = PartitionSpec('data')
    # The devices that share an image compute the same. The compiler sees that,
    # since the function is manual for the other axis only: a gradient is not
    # summed over them.
    sharded = jax.shard_map(
      function,
      mesh=self.mesh,
      in_specs=rows,
      out_specs=rows,
      axis_names={'data'},
      check_vma=False,
    )

    def run(*args):
      batch = jax.tree.leaves(args)[0].shape[0]
      even = batch % self.mesh.shape['data'] == 0
      return sharded(*args) if even else function(*args)

    return run


@dataclasses.dataclass(frozen=True)
class _Share:
  """Runs a module without state on every device for its rows; hashable.

  The compiler alone would sum the gradient of each call over the devices.
  """

  mesh: Mesh

  def __call__(self, module, maps):
    batch = jax.tree.leaves(maps)[0].shape[0]
    if module.is_initializing() or batch % self.mesh.shape['data']:
      return module(maps)
    rows = PartitionSpec('data')
    alone, variables = module.unbind()
    sharded = jax.shard_map(
      jax.named_scope(module.name)(alone.apply),
      mesh=self.mesh,
      in_specs=(PartitionSpec(), rows),
      out_specs=rows,
      axis_names={'data'},  # Else a sum over the other axis, of size 1.
      check_vma=False,
    )
    return sharded(variables, maps)


def _split_height(x, hook):
  """Splits the height of a map where that is even."""
  even = x.shape[1] % hook.mesh.shape['spatial'] == 0
  even = even and x.shape[1] >= mesh_lib.SMALLEST_HEIGHT
  sharding = mesh_lib.image_sharding if even else mesh_lib.batch_sharding
  return jax.lax.with_sharding_constraint(x, sharding(hook.mesh))


def _whole_images(x, hook):
  """Gives every device the whole height of its images."""
  sharding = mesh_lib.batch_sharding(hook.mesh)
  return jax.lax.with_sharding_constraint(x, sharding)


def _gather_parameter(x, hook):
  """Gathers a parameter on every device, and keeps its gradient split.

  The compiler alone would sum whole gradients on every device before it takes a
  part of them.
  """
  whole = mesh_lib.replicated(hook.mesh)
  part = mesh_lib.split_largest(x.shape, hook.mesh, hook.smallest)
  return _gathered(x, whole, part)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(x, whole, part):
  del part
  return jax.lax.with_sharding_constraint(x, whole)


def _gathered_forward(x, whole, part):
  return _gathered(x, whole, part), None


def _gathered_backward(unused_whole, part, unused_residuals, gradient):
  return (jax.lax.with_sharding_constraint(gradient, part),)


_gathered.defvjp(_gathered_forward, _gathered_backward)
