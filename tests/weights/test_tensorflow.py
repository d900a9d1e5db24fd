"""Weights from TensorFlow checkpoints in the names of all four layouts."""

import pathlib
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import tensorflow_checkpoint
import tiny_model

from maskrcnn_jax.structures import Instances
from maskrcnn_jax.weights import account as account_lib
from maskrcnn_jax.weights import tensorflow as tensorflow_lib

PREFIX = 'model.ckpt-112603'
WIDTH = 8
# Layers of the tiny model outside of its backbone: ours, and Habana's.
HEADS = {
  'fpn/lateral2': 'fpn/l2',
  'fpn/lateral3': 'fpn/l3',
  'fpn/lateral4': 'fpn/l4',
  'fpn/lateral5': 'fpn/l5',
  'fpn/output2': 'fpn/post_hoc_d2',
  'fpn/output3': 'fpn/post_hoc_d3',
  'fpn/output4': 'fpn/post_hoc_d4',
  'fpn/output5': 'fpn/post_hoc_d5',
  'rpn_head/conv': 'rpn_head/rpn',
  'rpn_head/objectness': 'rpn_head/rpn-class',
  'rpn_head/box_deltas': 'rpn_head/rpn-box',
  'box_head/fc6': 'box_head/fc6',
  'box_head/fc7': 'box_head/fc7',
  'box_head/class_logits': 'box_head/class-predict',
  'box_head/box_deltas': 'box_head/box-predict',
  'mask_head/conv1': 'mask_head/mask-conv-l0',
  'mask_head/deconv': 'mask_head/conv5-mask',
  'mask_head/mask_logits': 'mask_head/mask_fcn_logits',
}
# What Google's checkpoint also holds.
CLASSIFIER = {
  'dense/kernel': np.zeros((4, 7), np.float32),
  'dense/bias': np.zeros(7, np.float32),
  'global_step': np.int64(112603),
}


def make_variables(depth=50, norm='frozen', **options):
  """Shapes of the variables of a small model."""
  backbone = {
    'depth': depth,
    'width': WIDTH,
    'norm': norm,
    'frozen_stages': 2,
  }
  model = tiny_model.make_model(backbone=backbone, **options)
  batch = tiny_model.make_batch()
  key = jax.random.key(0)
  return jax.eval_shape(
    lambda: model.init(
      {'params': key, 'sampling': key},
      batch['images'],
      batch['image_sizes'],
      Instances(**batch['instances']),
    )
  )


@pytest.fixture(name='variables', scope='module')
def fixture_variables():
  return make_variables()


def google_tensors(depth=50):
  return tensorflow_checkpoint.google_backbone(depth, WIDTH)


def habana_tensors(variables):
  """A whole Mask R-CNN under Habana's names, of random numbers."""
  rng = np.random.default_rng(0)
  shapes = account_lib.flatten(variables)
  tensors = {f'resnet50/{k}': x for k, x in google_tensors().items()}
  for ours, theirs in HEADS.items():
    for leaf in ('kernel', 'bias'):
      shape = shapes[f'{ours}/{leaf}'].shape
      tensors[f'{theirs}/{leaf}'] = rng.normal(size=shape).astype(np.float32)
  return tensors


@pytest.fixture(name='google')
def fixture_google(tmp_path):
  """Prefix of a checkpoint of Google's ResNet-50, 8 channels wide."""
  prefix = tmp_path / PREFIX
  tensorflow_checkpoint.write_named(prefix, google_tensors() | CLASSIFIER)
  return prefix


def write(folder, tensors):
  prefix = folder / PREFIX
  tensorflow_checkpoint.write_named(prefix, tensors)
  return prefix


def test_a_narrow_backbone(google, variables):
  loaded, account = tensorflow_lib.load(google, variables)
  tensors = google_tensors()
  # The first block of a stage begins with its projection.
  for path, name in {
    ('params', 'stem', 'conv', 'kernel'): 'conv2d/kernel',
    ('params', 'stage2', 'block1', 'shortcut_conv', 'kernel'): (
      'conv2d_1/kernel'
    ),
    ('params', 'stage2', 'block1', 'conv1', 'kernel'): 'conv2d_2/kernel',
    ('params', 'stage3', 'block1', 'shortcut_conv', 'kernel'): (
      'conv2d_11/kernel'
    ),
    ('params', 'stage5', 'block3', 'conv3', 'kernel'): 'conv2d_52/kernel',
    ('batch_stats', 'stem', 'norm', 'scale'): 'batch_normalization/gamma',
    ('batch_stats', 'stage5', 'block1', 'shortcut_norm', 'mean'): (
      'batch_normalization_43/moving_mean'
    ),
    ('batch_stats', 'stage4', 'block6', 'norm2', 'variance'): (
      'batch_normalization_41/moving_variance'
    ),
  }.items():
    collection, *scopes = path
    array = loaded[collection]['backbone']
    for scope in scopes:
      array = array[scope]
    np.testing.assert_array_equal(array, tensors[name], err_msg=name)
    assert array.dtype == np.float32
  assert set(account.loaded.values()) == set(tensors)
  # The rest is what was given.
  assert loaded['params']['fpn'] == variables['params']['fpn']
  assert jax.tree.structure(loaded) == jax.tree.structure(variables)


def test_the_account_of_a_backbone(google, variables):
  _, account = tensorflow_lib.load(google, variables)
  assert account.kind == tensorflow_lib.kind(google) == 'backbone'
  assert len(account.loaded) == 265
  assert account.surplus == ['dense/bias', 'dense/kernel']
  assert account.bookkeeping == ['global_step']
  heads = [x for x in account_lib.flatten(variables) if 'backbone/' not in x]
  assert sorted(account.initial) == sorted(heads)
  assert str(account).splitlines() == [
    f'265 tensors of {PREFIX} -> backbone',
    'left out: 2 of no part of the model (dense/bias, dense/kernel)',
    'left out: 1 of its training (global_step)',
    f'{len(heads)} variables outside of the backbone keep their initial values '
    '(box_head, fpn, mask_head, rpn_head)',
  ]


def test_blocks_count_as_numbers(tmp_path):
  """Block 10 of stage 4 comes after block 9, not after block 1."""
  tensors = google_tensors(depth=101)
  prefix = write(tmp_path, tensors)
  _, account = tensorflow_lib.load(prefix, make_variables(depth=101))
  assert len(account.loaded) == len(tensors) == 104 * 5
  block = 'backbone/stage4/block10/conv1/kernel'
  # 1 + 10 + 13 calls in front of the stage, then 4 and 8 times 3.
  assert account.loaded[block] == f'conv2d_{1 + 10 + 13 + 4 + 8 * 3}/kernel'


def test_trainable_norm_has_scale_and_bias_among_the_parameters(google):
  variables = make_variables(norm='batch')
  loaded, account = tensorflow_lib.load(google, variables)
  assert len(account.loaded) == 265
  norm = loaded['params']['backbone']['stage5']['block3']['norm3']
  stats = loaded['batch_stats']['backbone']['stage5']['block3']['norm3']
  tensors = google_tensors()
  for array, name in (
    (norm['scale'], 'gamma'),
    (norm['bias'], 'beta'),
    (stats['mean'], 'moving_mean'),
    (stats['variance'], 'moving_variance'),
  ):
    theirs = tensors[f'batch_normalization_52/{name}']
    np.testing.assert_array_equal(array, theirs)


def test_a_whole_model(tmp_path, variables):
  tensors = habana_tensors(variables)
  prefix = write(tmp_path, tensors)
  loaded, account = tensorflow_lib.load(prefix, variables)
  assert account.kind == tensorflow_lib.kind(prefix) == 'model'
  assert not (account.surplus or account.bookkeeping or account.initial)
  arrays = account_lib.flatten(loaded)
  for ours, theirs in HEADS.items():
    assert account.loaded[f'{ours}/bias'] == f'{theirs}/bias'
    kernel = tensors[f'{theirs}/kernel']
    if ours == 'mask_head/deconv':
      kernel = kernel.transpose(0, 1, 3, 2)
    np.testing.assert_array_equal(arrays[f'{ours}/kernel'], kernel)


def test_another_number_of_classes_is_named(tmp_path, variables):
  tensors = habana_tensors(variables)
  other = make_variables(num_classes=91)
  message = error(write(tmp_path, tensors), other)
  assert 'mask_head/mask_logits/kernel <- mask_head/mask_fcn_logits/' in message
  assert message.endswith(
    'It was trained for 4 classes with background, the model is for 91: set '
    'model.num_classes=4, or training.finetune=true to train the predictors '
    'anew.'
  )


def test_a_longer_mask_head_is_not_half_used(tmp_path, variables):
  tensors = habana_tensors(variables)
  tensors['mask_head/mask-conv-l1/bias'] = np.zeros(16, np.float32)
  message = error(write(tmp_path, tensors), variables)
  assert 'mask_head/mask-conv-l1/bias: the model has no such layer' in message


def test_group_norm_has_no_place_for_statistics(google):
  message = error(google, make_variables(norm='group'))
  assert "group norm: set model.backbone.norm to 'frozen' or 'batch'" in message


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_short_floats_become_float32(tmp_path, variables, dtype):
  tensors = google_tensors()
  short = {name: x.astype(dtype) for name, x in tensors.items()}
  loaded, _ = tensorflow_lib.load(write(tmp_path, short), variables)
  kernel = loaded['params']['backbone']['stem']['conv']['kernel']
  assert kernel.dtype == np.float32
  np.testing.assert_array_equal(
    kernel, short['conv2d/kernel'].astype(np.float32)
  )


def error(prefix, variables):
  with pytest.raises(ValueError) as raised:
    tensorflow_lib.load(prefix, variables)
  return str(raised.value)


def test_missing_and_misshaped_tensors_are_listed(tmp_path, variables):
  tensors = google_tensors()
  del tensors['conv2d_7/kernel']
  tensors['conv2d/kernel'] = tensors['conv2d/kernel'][:3]
  tensors['batch_normalization/gamma'] = np.zeros(WIDTH, np.int32)
  prefix = write(tmp_path, tensors)
  assert error(prefix, variables).splitlines() == [
    f'{prefix} does not fit the model, 3 tensors are wrong:',
    '  backbone/stem/conv/kernel <- conv2d/kernel: is (3, 7, 3, 8), wanted '
    '(7, 7, 3, 8)',
    '  backbone/stem/norm/scale <- batch_normalization/gamma: is int32, wanted '
    'float',
    '  backbone/stage2/block2/conv3/kernel <- conv2d_7/kernel: is missing, '
    'wanted (1, 1, 8, 32)',
  ]


def test_a_long_list_of_errors_is_cut(tmp_path, variables):
  tensors = {name: x[..., :1] for name, x in google_tensors().items()}
  lines = error(write(tmp_path, tensors), variables).splitlines()
  assert 'model, 265 tensors are wrong' in lines[0]
  assert len(lines) == 12
  assert lines[-1] == '  ... and 255 more'


def test_a_deeper_backbone_is_not_half_used(tmp_path, variables):
  message = error(write(tmp_path, google_tensors(depth=101)), variables)
  assert 'It is of a larger network: see model.backbone.depth' in message


def test_a_prefix_may_have_the_suffix_of_one_of_its_files(google, variables):
  for suffix in ('.index', '.data-00000-of-00001', '.meta'):
    _, account = tensorflow_lib.load(f'{google}{suffix}', variables)
    assert account.source == PREFIX


def test_a_folder_with_a_state_file(google, variables):
  # As it is written on another machine.
  state = f'model_checkpoint_path: "/elsewhere/{PREFIX}"\n'
  (google.parent / 'checkpoint').write_text(
    state + 'all_model_checkpoint_paths: "model.ckpt-1"\n'
  )
  _, account = tensorflow_lib.load(google.parent, variables)
  assert account.source == PREFIX


def test_a_state_file_that_names_nothing_there(google, variables):
  (google.parent / 'checkpoint').write_text('model_checkpoint_path: "other"\n')
  message = error(google.parent, variables)
  assert 'names the checkpoint other, which is not there' in message
  assert f'holds {PREFIX}.' in message


def test_a_folder_without_a_state_file(google, variables):
  message = error(google.parent, variables)
  assert 'is a folder without a file `checkpoint`' in message
  assert f'holds {PREFIX}.' in message


def test_a_wrong_prefix_names_what_is_there(google, tmp_path, variables):
  message = error(tmp_path / 'model.ckpt-112602', variables)
  assert 'There is no checkpoint' in message
  assert 'model.ckpt-112602.index is not there.' in message
  assert f'{tmp_path} holds {PREFIX}.' in message
  message = error(tmp_path / 'no' / PREFIX, variables)
  assert f'{tmp_path / "no"} is no folder' in message


def test_a_file_of_another_kind(tmp_path, variables):
  path = tmp_path / 'weights.pth'
  path.write_bytes(b'something')
  message = error(path, variables)
  assert f'{path} is no TensorFlow checkpoint' in message
  assert 'holds no checkpoint' in message


def data_file(prefix):
  return pathlib.Path(f'{prefix}.data-00000-of-00001')


def test_data_that_is_missing(google, variables):
  data_file(google).unlink()
  assert f'{data_file(google)} is not there' in error(google, variables)


def cut_short(content):
  return content[:1000]


def change_a_byte(content):
  return content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]


@pytest.mark.parametrize('damage', [cut_short, change_a_byte])
def test_data_that_is_damaged(google, variables, damage):
  path = data_file(google)
  path.write_bytes(damage(path.read_bytes()))
  message = error(google, variables)
  assert f'cannot be read from {path}, which may be damaged' in message


@pytest.mark.parametrize('size', [0, 100])
def test_an_index_that_is_damaged(google, variables, size):
  path = pathlib.Path(f'{google}.index')
  path.write_bytes(path.read_bytes()[:size])
  assert f'{path} cannot be read' in error(google, variables)


def test_a_checkpoint_of_something_else(tmp_path, variables):
  names = [f'bert/layer_{index}/kernel' for index in range(7)]
  prefix = write(tmp_path, dict.fromkeys(names, np.zeros(2, np.float32)))
  message = error(prefix, variables)
  assert f'{prefix} is neither a ResNet nor a Mask R-CNN' in message
  assert 'It has 7 tensors: bert/layer_0/kernel, bert/layer_1/kernel' in message
  with pytest.raises(ValueError, match='neither a ResNet'):
    tensorflow_lib.kind(prefix)


def test_the_module_is_imported_without_tensorflow():
  code = (
    'import sys, maskrcnn_jax.weights.tensorflow; '
    "assert 'tensorflow' not in sys.modules"
  )
  subprocess.run([sys.executable, '-c', code], check=True)
