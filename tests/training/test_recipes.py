"""Recipes of `configs/coco.py`: their lengths; a few steps at small scale."""

import functools
import pathlib

import jax
import numpy as np
import pytest

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.input_pipeline import batches as input_batches
from maskrcnn_jax.input_pipeline import single_images
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.optimization import schedule
from maskrcnn_jax.optimization.optimizer import make_optimizer
from maskrcnn_jax.training import train_state, train_step

# Name -> epochs of 117266 images with objects, steps at which the rate falls.
RECIPES = {
  'detectron2_1x': (12.3, (60_000, 80_000)),
  'detectron2_3x': (36.8, (210_000, 250_000)),
  'mlperf': (15.0, (12_000, 16_000)),
  'lsj_100ep': (100.6, (163_889, 177_546)),
  'lsj_400ep': (402.5, (655_556, 710_185)),
  'torchvision_v2_400ep': (400.2, (645_216, 703_872)),
  'copy_paste': (589.4, (243_000, 256_500, 263_250)),
  'convnext_tiny_3x': (36.0, (197_910, 241_890)),
  'vitdet_b_100ep': (100.6, (163_889, 177_546)),
  'vitdet_l_100ep': (100.6, (163_889, 177_546)),
}
# Their programs are those of others at another scale or length.
SAME_PROGRAM = ('detectron2_3x', 'lsj_400ep', 'vitdet_l_100ep')
# The others take minutes. The parts of Detectron2's are held to its recordings,
# copy-paste has tests of its batches.
IN_CI = ('vitdet_b_100ep',)


def load(name):
  config = config_lib.load_config(f'coco:{name}')
  options = make_optimizer(
    MaskRCNN.from_config(config.model),
    config.optimizer,
    config.training.num_steps,
  ).options
  return config, options


@pytest.mark.parametrize('name', RECIPES)
def test_length_and_schedule(name):
  epochs, steps = RECIPES[name]
  config, options = load(name)
  images = config.training.num_steps * config.input.batch_size
  assert images / 117_266 == pytest.approx(epochs, abs=0.05)
  assert schedule.decay_steps(options) == steps
  rate_at = schedule.learning_rate(options)
  last = config.training.num_steps - 1
  rates = [float(rate_at(step)) for step in (0, options.warmup_steps, last)]
  start, peak = options.warmup_learning_rate, options.learning_rate
  expected = [start, peak, peak * options.decay_factors[-1]]
  assert rates == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('name', RECIPES)
def test_sizes_of_the_evaluation(name):
  """Detectron2 and torchvision test at 800x1333, also after square training."""
  config, _ = load(name)
  found = single_images.detection_sizes(config)
  square = name.startswith(('copy_paste', 'vitdet'))
  canvases = ((1024, 1024),) if square else ((800, 1344), (1344, 800))
  assert found['canvases'] == canvases
  assert found['resize']['fit_size'] == (None if square else (800, 1333))
  is_jittered = square or name.startswith(('lsj', 'torchvision_v2'))
  trained = ((1024, 1024),) if is_jittered else canvases
  assert tuple(config.input.canvases) == trained


def shrink(config, pattern):
  """The same recipe with a narrow model, tiny images and two of them a step."""
  proposals = {'pre_nms_top_k': 32, 'post_nms_top_k': 16}
  config.unlock()
  config.model.update(
    {
      'num_classes': 3,
      'backbone': {
        'depth': 18,
        'width': 8,
        'convnext': {'blocks': (1, 1, 1, 1), 'widths': (8, 16, 16, 16)},
        'vit': {'width': 16, 'depth': 2, 'heads': 2, 'global_blocks': (1,)},
      },
      'pyramid_channels': 8,
      'box_channels': 16,
      'mask_channels': 8,
      'mask_convs': 1,
      'box_convs': min(config.model.box_convs, 1),
      'train_proposals': proposals,
      'rpn_targets': {'num_samples': 16},
      'sampling': {'num_rois': 8, 'foreground_fraction': 0.5},
      'losses': {'rpn_samples': 16},
    }
  )
  config.input.update(
    {
      'file_pattern': pattern,
      'canvases': ((64, 64),),
      'batch_size': 2,
      'max_instances': 4,
      'mask_size': 28,
      'num_threads': 1,
    }
  )
  if config.input.resize.fit_size:
    config.input.resize.fit_size = (48, 64)
  if config.input.augment.short_edges:
    config.input.augment.short_edges = (32, 48)
  # Random values without a norm bear neither the range of Caffe's colours nor
  # the full rate, which the recipes reach slowly from trained backbones.
  config.model.pixel_std = (0.229, 0.224, 0.225)
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_learning_rate = 1e-3
  return config


@pytest.mark.slow
@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.long] * (name not in IN_CI))
    for name in RECIPES
    if name not in SAME_PROGRAM
  ],
)
def test_a_few_steps(name, dataset):
  config = shrink(load(name)[0], dataset[0])
  batches = input_batches.train_batches(**config.input)
  batch = next(batches)
  model = MaskRCNN.from_config(config.model)
  state, optimizer = train_state.create_train_state(
    model, {**config.optimizer, 'num_steps': 10}, batch, jax.random.key(0)
  )
  step = jax.jit(functools.partial(train_step.train_step, model, optimizer))
  before = state.params
  for _ in range(3):
    state, metrics = step(state, batch)
    assert metrics['finite']
    batch = next(batches)
  moved = jax.tree.map(lambda x, y: bool(np.any(x != y)), before, state.params)
  trained = optimizer.trainable(before)
  moved, trained = map(jax.tree.leaves, (moved, trained))
  assert not any(np.array(moved) & ~np.array(trained))
  # Some biases of ReLUs that are never active stay.
  assert np.mean(np.array(moved)[np.array(trained)]) > 0.8


def test_every_recipe_of_the_page_has_its_row():
  page = pathlib.Path(__file__).parents[2] / 'docs/recipes.md'
  text = page.read_text()
  for name in RECIPES:
    assert f'| `{name}` |' in text
    config, _ = load(name)
    row = next(x for x in text.splitlines() if f'| `{name}` |' in x)
    assert f'| {config.input.batch_size}, ' in row
