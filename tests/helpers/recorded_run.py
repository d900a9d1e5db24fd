"""Recorded models (`11_model`): weights, inputs, and outputs by variant.

A recording has a manifest of the weights, the inputs, and the outputs of each
variant. Anchors and RoIs that were sampled at random in it are injected.
"""

import dataclasses
import functools
import json
from typing import Any

import flax.struct
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import recorded_model

from maskrcnn_jax.config import load_config
from maskrcnn_jax.models.mask_rcnn import MaskRCNN, TrainOutputs
from maskrcnn_jax.models.targets import RPNTargets
from maskrcnn_jax.optimization import optimizer as optimizer_lib
from maskrcnn_jax.optimization import parameters
from maskrcnn_jax.structures import Instances, SampledRois
from maskrcnn_jax.training import train_step as train_step_lib

CONFIGS = {'hb': 'coco:habana_1x', 'nv': 'coco:nvidia_1x'}
MANIFESTS = golden_files.files('11_model_*_manifest.npz')
CASES = [(path, variant) for path in MANIFESTS for variant in CONFIGS]
# Names of the losses in the recordings.
LOSSES = {
  'rpn_objectness': 'rpn_score_loss',
  'rpn_box': 'rpn_box_loss',
  'class': 'fast_rcnn_class_loss',
  'box': 'fast_rcnn_box_loss',
  'mask': 'mask_rcnn_loss',
  'l2_loss': 'l2_regularization_loss',
}

# Shares of the largest magnitude of an array. Where a ReLU or a comparison of
# IoUs is on its edge, machines differ; see tests/golden/README.md for what was
# seen.
FORWARD = 1e-4
LOSS = 1e-5
GRADIENT = 1e-3


@dataclasses.dataclass
class Case:
  """A variant of a recorded model.

  Attributes:
    model: of the variant's config.
    optimizer: options of the variant's config.
    variables: made by formula.
    inputs: arrays of the inputs file, `images` included.
    files: arrays of the files `eval`, `rpn` and `train` of the variant.
  """

  model: MaskRCNN
  optimizer: optimizer_lib.OptimizerOptions
  variables: dict[str, Any]
  inputs: dict[str, np.ndarray]
  files: dict[str, dict[str, np.ndarray]]

  @property
  def canvas(self):
    return self.inputs['images'].shape[1:3]

  @property
  def image_sizes(self):
    return self.inputs['image_info'][:, :2]

  @property
  def pixels(self):
    """The images before they were normalised."""
    model, images = self.model, self.inputs['images'].astype(np.float64)
    pixels = 255.0 * (images * model.pixel_std + np.asarray(model.pixel_mean))
    return pixels.astype(np.float32)


@flax.struct.dataclass
class TrainInputs:
  """Inputs of the training losses.

  Attributes:
    images: `[batch, height, width, 3]`, not normalised.
    image_sizes: `[batch, 2]`.
    instances: ground truth.
    rois: the recorded ones.
    rpn_targets: the recorded ones.
  """

  images: jax.Array
  image_sizes: jax.Array
  instances: Instances
  rois: SampledRois
  rpn_targets: RPNTargets


def load_case(manifest, variant):
  """A variant of the model that a manifest describes."""
  model, optimizer = make_model(variant)
  return Case(
    model=model,
    optimizer=optimizer,
    variables=formula_variables(manifest),
    inputs=load_inputs(manifest),
    files={
      kind: golden_files.load(sibling(manifest, f'{variant}_{kind}'))
      for kind in ('eval', 'rpn', 'train')
    },
  )


@functools.cache
def formula_variables(manifest):
  return recorded_model.variables(golden_files.load(manifest))


def load_inputs(manifest):
  inputs = golden_files.load(sibling(manifest, 'inputs'))
  if 'images' not in inputs:
    params = json.loads(str(inputs['meta']))['params']
    inputs['images'] = recorded_model.images(
      params['image_seed'], params['size'], params['valid']
    )
  return inputs


def sibling(manifest, kind):
  return manifest.with_name(manifest.name.replace('manifest', kind))


def make_model(variant):
  config = load_config(CONFIGS[variant])
  model = MaskRCNN.from_config(config.model)
  if variant == 'nv':
    # NVIDIA passes all anchors of a level to NMS. The config cuts them, for
    # memory; on this canvas all fit.
    model = model.clone(
      train_proposals=dataclasses.replace(
        model.train_proposals, pre_nms_top_k=None
      ),
      test_proposals=dataclasses.replace(
        model.test_proposals, pre_nms_top_k=None
      ),
    )
  return model, optimizer_lib.OptimizerOptions(**config.optimizer)


def make_instances(inputs):
  """Ground truth; recorded masks have a border of two zeros."""
  num = int(inputs['n_gt'].max())
  valid = np.arange(num) < inputs['n_gt'][:, None]
  masks = np.zeros((*valid.shape, 112, 112), np.float32)
  for image, count in enumerate(inputs['n_gt']):
    cut = inputs[f'cropped_gt_masks_b{image}']
    masks[image, :count] = cut[:count, 2:-2, 2:-2]
  return Instances(
    boxes=np.where(valid[..., None], inputs['gt_boxes'][:, :num], 0.0),
    classes=np.where(valid, inputs['gt_classes'][:, :num, 0], 0).astype(int),
    masks=masks,
    valid=valid,
  )


def make_rois(recorded):
  """Recorded RoIs with foreground first, and the order that sorts them."""
  order = np.argsort(recorded['s_class_targets'] <= 0, axis=1, kind='stable')

  def reorder(name):
    return np.stack([x[i] for x, i in zip(recorded[name], order)])

  classes = reorder('s_class_targets')
  rois = SampledRois(
    boxes=reorder('s_rois'),
    classes=np.maximum(classes, 0).astype(np.int32),
    instance_indices=np.where(classes > 0, reorder('s_label_map'), 0),
    valid=classes >= 0,
  )
  return rois, order


def make_rpn_targets(inputs, anchors):
  """Recorded targets, level by level."""
  ends = np.cumsum([len(boxes) for boxes in anchors.values()])[:-1]

  def split(values):
    return dict(zip(anchors, np.split(values, ends, axis=1)))

  deltas = inputs['rpn_box_targets']
  return RPNTargets(
    labels=split(inputs['rpn_score_targets']),
    matched=split(np.any(deltas != 0.0, axis=-1)),
    box_deltas=split(deltas),
  )


def make_train_inputs(case):
  """Inputs of the recorded losses."""
  rois, _ = make_rois(case.files['train'])
  return TrainInputs(
    images=case.pixels,
    image_sizes=case.image_sizes,
    instances=make_instances(case.inputs),
    rois=rois,
    rpn_targets=make_rpn_targets(
      case.inputs, case.model.anchor_boxes(case.canvas)
    ),
  )


def training_losses(
  model: MaskRCNN, variables: dict[str, Any], inputs: TrainInputs
) -> tuple[dict[str, jax.Array], TrainOutputs]:
  """Losses by name, and the outputs of the model."""
  outputs = model.apply(
    variables,
    inputs.images,
    inputs.image_sizes,
    inputs.instances,
    rois=inputs.rois,
  )
  losses = train_step_lib.training_losses(
    model,
    outputs,
    inputs.instances,
    jnp.ones(len(inputs.images), bool),
    inputs.rpn_targets,
  )
  return losses, outputs


def trainable_parameters(case):
  """Bools in the structure of the parameters."""
  return parameters.trainable_parameters(
    case.variables['params'], case.model.backbone.frozen_stages
  )


def assert_losses(losses, recorded):
  """Every loss is the recorded one by itself, and so is their sum.

  Args:
    losses: by name, the weight decay `l2_loss` among them.
    recorded: the file `train`.
  """
  for name, recorded_name in LOSSES.items():
    golden_files.assert_near(losses[name], recorded[recorded_name], LOSS, name)
  total = sum(losses.values())
  golden_files.assert_near(total, recorded['total_loss'], LOSS, 'the total')


def assert_maps(maps, recorded, prefix):
  """Maps by level are the recorded ones: some cells, means and deviations.

  Args:
    maps: `[batch, height, width, channels]` by level.
    recorded: the file `eval`.
    prefix: `C` of the backbone, `P` of the pyramid.
  """
  for level, values in maps.items():
    actual = np.asarray(values, np.float64)
    expected = recorded[f'{prefix}{level}_slice']
    step = [max(1, size // 6) for size in actual.shape[1:3]]
    channels = expected.shape[-1]
    cut = actual[:, :: step[0], :: step[1], :channels]
    golden_files.assert_near(cut, expected, FORWARD, f'{prefix}{level}')
    for moment in ('mean', 'std'):
      golden_files.assert_near(
        getattr(actual, moment)(axis=(0, 1, 2)),
        recorded[f'{prefix}{level}_{moment}_f64'],
        FORWARD,
        f'{moment} of {prefix}{level}',
      )
