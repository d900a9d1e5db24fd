"""Subject of a benchmark: a model with its weights and batches on devices."""

import dataclasses
import logging
from typing import Any

import jax

from maskrcnn_jax.benchmarks import examples
from maskrcnn_jax.distributed import arrays, model_sharding
from maskrcnn_jax.distributed import mesh as mesh_lib
from maskrcnn_jax.models.layout import Layout
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.optimization.optimizer import Optimizer, make_optimizer
from maskrcnn_jax.training import train_state

# So small that the weights, and the detections they give, stay as they are.
LEARNING_RATE = 1e-6


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model laid out on a mesh, and NumPy batches that are taken in turn.

  `images` is the pattern of the records, or `synthetic`; for `shard_state` see
  `mesh.state_shardings`.
  """

  model: MaskRCNN
  optimizer: Optimizer
  mesh: Any
  host_batches: list[dict[str, Any]]
  images: str
  shard_state: str = 'none'

  @property
  def batch_size(self) -> int:
    """Images in a batch over all devices."""
    return len(self.host_batches[0]['images'])

  @property
  def canvas(self) -> tuple[int, int]:
    """Height and width of the images."""
    return self.host_batches[0]['images'].shape[1:3]

  @property
  def peer(self) -> str:
    """Library that the model is measured beside; torchvision has no ViT."""
    return 'timm' if self.model.backbone.kind == 'vit' else 'torchvision'

  def describe(self) -> dict[str, Any]:
    """Sizes of the model and of the batches, for the record."""
    return {
      'canvas': list(self.canvas),
      'batch_size': self.batch_size,
      'dtype': self.model.dtype,
      'num_classes': self.model.num_classes,
      'depth': self.model.backbone.depth,
      'images': self.images,
      'objects': [
        batch['instances']['valid'].sum(axis=1).tolist()
        for batch in self.host_batches
      ],
    }

  def skipping_nothing(self) -> 'Subject':
    """The same, whose mask head computes RoIs that are padding too."""
    layout = dataclasses.replace(self.model.layout, mask_head=Layout.mask_head)
    return dataclasses.replace(self, model=self.model.clone(layout=layout))

  def batches(self) -> list[dict[str, Any]]:
    """The batches on the devices."""
    return [arrays.put_batch(batch, self.mesh) for batch in self.host_batches]

  def state(self, background: float = examples.TRAINING_BACKGROUND):
    """A train state of `examples.example_variables` on the devices."""
    state = jax.eval_shape(
      lambda key: train_state.init_state(
        self.model, self.optimizer, self.host_batches[0], key
      ),
      jax.random.key(0),
    )
    variables = examples.example_variables(state.variables(), background)
    state = train_state.initial_state(self.optimizer, variables)
    return jax.device_put(
      state, mesh_lib.state_shardings(state, self.mesh, self.shard_state)
    )


def make_subject(
  config: Any, is_real: bool, num_batches: int, num_objects: int | None = None
) -> Subject:
  """The subject that a config describes, with batches of its records if real.

  `num_objects` is that of every synthetic image; None: as many as in COCO.
  """
  mesh = mesh_lib.config_mesh(config)
  shard_state = mesh_lib.config_shard_state(config)
  model = MaskRCNN.from_config(config.model)
  constant_rate = {'learning_rate': LEARNING_RATE, 'warmup_steps': 0}
  constant_rate |= {'schedule': 'steps', 'decay_steps': (), 'decay_factors': ()}
  optimizer = make_optimizer(
    model, {**config.get('optimizer', {}), **constant_rate}
  )
  inputs = config.input
  if is_real:
    logging.info('reading %s', inputs.file_pattern)
    batches = examples.real_batches(inputs, num_batches)
    images = inputs.file_pattern
  else:
    batches = examples.synthetic_batches(
      tuple(inputs.canvases[0]),
      inputs.batch_size,
      num_batches,
      model.num_classes,
      num_objects=num_objects,
      **{k: inputs[k] for k in ('max_instances', 'mask_size') if k in inputs},
    )
    images = 'synthetic'
  return Subject(
    model=model_sharding.shard_model(model, mesh, shard_state),
    optimizer=optimizer,
    mesh=mesh,
    host_batches=batches,
    images=images,
    shard_state=shard_state,
  )
