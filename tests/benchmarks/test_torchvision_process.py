"""torchvision's side of a comparison, with a stand-in for the interpreter.

`MASKRCNN_TORCH_PYTHON`, an interpreter with torch and torchvision, adds a test
of the real one.
"""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import stand_in_torchvision

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.benchmarks import (
  examples,
  programs,
  torchvision_process,
  torchvision_side,
)
from maskrcnn_jax.benchmarks.options import BenchOptions
from maskrcnn_jax.benchmarks.subject import make_subject
from maskrcnn_jax.benchmarks.torchvision_process import TorchvisionProcess
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.mask_rcnn import MaskRCNN

_TORCH = os.environ.get('MASKRCNN_TORCH_PYTHON')


def _model(**options):
  config = config_lib.load_config('coco:torchvision')
  return MaskRCNN.from_config({**config.model.to_dict(), **options})


@pytest.fixture(name='process')
def fixture_process(tmp_path):
  process = TorchvisionProcess(stand_in_torchvision.install(tmp_path))
  yield process
  process.close()


def test_requests_are_answered(process):
  settings = torchvision_process.settings(_model(), (64, 96))
  facts = process.ask(
    'set_up', model=settings, threads=2, optimizer={'lr': 1.0}
  )
  assert facts['threads'] == 2
  assert process.ask('usage')['peak_memory'] == 2**30
  assert process.ask('backbone', number=3) == {'seconds': 0.125}


def test_a_failed_request_leaves_the_process_alive(process):
  with pytest.raises(UserError, match='rounds count from 0') as error:
    process.ask('backbone', number=-1)
  assert (error.value.item, error.value.argument) == ('backbone', 'against')
  with pytest.raises(UserError, match='AttributeError') as error:
    process.ask('invent')
  assert error.value.item == 'invent'
  assert process.ask('backbone', number=0) == {'seconds': 0.125}


def test_the_last_line_of_a_process_that_ends_is_shown(process):
  with pytest.raises(UserError, match='killed: out of memory') as error:
    process.ask('die')
  assert error.value.path.endswith('python')
  with pytest.raises(UserError) as error:
    process.ask('usage')
  assert error.value.item == 'usage'


def test_an_interpreter_without_torch():
  process = TorchvisionProcess(sys.executable)
  try:
    with pytest.raises(UserError, match="'torch'"):
      process.ask('set_up', model={}, threads=1, optimizer={})
  finally:
    process.close()


def test_no_such_interpreter():
  with pytest.raises(UserError) as error:
    TorchvisionProcess('/no/python')
  assert (error.value.path, error.value.argument) == ('/no/python', 'against')


def test_the_script_imports_nothing_of_this_package():
  folder = os.path.dirname(torchvision_side.__file__)
  code = (
    f'import sys; sys.path.insert(0, {folder!r})\n'
    'import torchvision_side\n'
    'heavy = {"jax", "numpy", "torch", "maskrcnn_jax"}\n'
    'print(heavy & set(sys.modules))\n'
  )
  shown = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert shown.stdout == 'set()\n'


def test_settings_are_those_of_the_model():
  found = torchvision_process.settings(_model(), (512, 640))
  assert found['depth'] == 50 and found['canvas'] == [512, 640]
  assert found['frozen_stages'] == 2  # torchvision trains three of five.
  # torchvision's own defaults.
  assert found['options'] == {
    'rpn_pre_nms_top_n_train': 2000,
    'rpn_pre_nms_top_n_test': 1000,
    'rpn_post_nms_top_n_train': 2000,
    'rpn_post_nms_top_n_test': 1000,
    'rpn_nms_thresh': 0.7,
    'rpn_batch_size_per_image': 256,
    'box_batch_size_per_image': 512,
    'box_positive_fraction': 0.25,
    'box_score_thresh': 0.05,
    'box_nms_thresh': 0.5,
    'box_detections_per_img': 100,
  }


@pytest.mark.parametrize(
  'options, field',
  [
    ({'pyramid_channels': 64}, 'model.pyramid_channels'),
    ({'backbone': {'width': 32}}, 'model.backbone.width'),
    ({'backbone': {'norm': 'group'}}, 'model.backbone.norm'),
    ({'backbone': {'kind': 'convnext'}}, 'model.backbone.kind'),
    ({'head_norm': {'kind': 'batch'}}, 'model.head_norm.kind'),
    ({'box_convs': 4}, 'model.box_convs'),
    ({'anchors': {'scales_per_octave': 2}}, 'model.anchors.scales_per_octave'),
  ],
)
def test_models_that_torchvision_does_not_have(options, field):
  with pytest.raises(UserError) as error:
    torchvision_process.settings(_model(**options), (64, 64))
  assert error.value.argument == field


def test_batches_in_torchvisions_form():
  left_half = np.zeros((9, 9), np.uint8)
  left_half[:, :5] = 255

  def batch(counts, offset):
    valid = np.arange(3) < np.array(counts)[:, None]
    boxes = np.zeros((2, 3, 4), np.float32)
    boxes[valid] = [4, 8, 12, 24]
    return {
      'images': np.full((2, 16, 32, 3), offset, np.uint8),
      'instances': {
        'boxes': boxes,
        'classes': np.where(valid, offset, 0).astype(np.int32),
        'masks': np.tile(left_half, (2, 3, 1, 1)),
        'valid': valid,
      },
    }

  arrays = torchvision_process.arrays_of([batch((1, 3), 5), batch((2, 0), 7)])
  counts = [len(arrays[f'labels/{number}']) for number in range(4)]
  assert counts == [1, 3, 2, 0] and len(arrays) == 4 * 4
  assert arrays['labels/1'].tolist() == [5, 5, 5]
  np.testing.assert_array_equal(arrays['boxes/2'], [[8, 4, 24, 12]] * 2)
  assert arrays['image/3'].shape == (16, 32, 3)
  masks = np.unpackbits(arrays['masks/2'], axis=-1)
  expected = np.zeros((16, 32))
  expected[4:12, 8:16] = 1
  # Samples of a crop lie on the edges of its box, at most a pixel further.
  assert (masks >= expected).all() and masks[:, 3:13, 7:18].sum() == masks.sum()


@pytest.mark.slow
@pytest.mark.skipif(not _TORCH, reason='MASKRCNN_TORCH_PYTHON is not set')
def test_both_sides_compute_the_same():
  config = config_lib.load_config(
    'coco:torchvision',
    [
      'input.canvases=((128, 160),)',
      'input.batch_size=2',
      'optimizer.learning_rate=1e-6',
    ],
  )
  subject = make_subject(config, False, 2)
  with torchvision_process.beside(_TORCH, subject, 2) as (other, facts):
    assert facts['device'] in ('cpu', 'cuda')
    state = subject.state(examples.DETECTION_BACKGROUND)
    other.load_weights(state.variables())
    ours = jax.jit(
      lambda variables, batch: subject.model.apply(
        variables, batch['images'], batch['image_sizes'], method='detect'
      )
    )(state.variables(), subject.batches()[1])
    theirs = other.ask('detect', number=1) | other.ask('detected_scores')
    steps = programs.training(subject, other, BenchOptions(rounds=1, warmup=1))
  for row in range(2):
    scores = np.asarray(ours.scores[row])[np.asarray(ours.valid[row])]
    assert len(scores) == theirs['detections'][row] > 0
    # Sums in another order; boxes at the brink of an NMS may differ.
    differences = np.abs(np.sort(scores) - np.sort(theirs['scores'][row]))
    assert np.median(differences) < 1e-3
  ours, forced, skipping, free = steps
  assert ours['foreground'] == forced['foreground']
  assert 'ratio' not in skipping and free['ratio']['median'] > 0
  losses, others = ours['losses'], free['losses']
  for name, other_name in (
    ('rpn_objectness', 'loss_objectness'),
    ('rpn_box', 'loss_rpn_box_reg'),
    ('class', 'loss_classifier'),
    ('box', 'loss_box_reg'),
    ('mask', 'loss_mask'),
  ):
    # Anchors and RoIs are sampled.
    assert losses[name] == pytest.approx(others[other_name], rel=0.5)


@pytest.mark.slow
@pytest.mark.skipif(not _TORCH, reason='MASKRCNN_TORCH_PYTHON is not set')
@pytest.mark.parametrize(
  'name, fields',
  [
    ('convnext_tiny', ['convnext.output_norms=false']),
    # Positions as timm has them for this canvas.
    ('vitdet_b', ['vit.table_side=8', 'vit.position_side=8']),
  ],
)
def test_backbones_alone_have_the_same_parameters(name, fields):
  config = config_lib.load_config(
    f'coco:{name}',
    [
      'input.canvases=((128, 128),)',
      'input.resize.fit_size=None',
      'input.batch_size=1',
      *(f'model.backbone.{field}' for field in fields),
    ],
  )
  subject = make_subject(config, False, 1)
  with torchvision_process.beside(_TORCH, subject, 1, what=('backbone',)) as (
    other,
    facts,
  ):
    assert other.ask('backbone', number=0)['seconds'] > 0
  ours = jax.tree.leaves(subject.state().params['backbone'])
  assert facts['parameters'] == sum(x.size for x in ours)
