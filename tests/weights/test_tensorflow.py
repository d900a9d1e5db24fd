"""TensorFlow checkpoints: names, shapes, missing and corrupt files."""

import pathlib

import ml_dtypes
import narrow_models
import numpy as np
import pytest
import tensorflow_checkpoint

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import external, load_report, tensorflow

PREFIX = 'model.ckpt-112603'
# Further tensors of Google's checkpoint.
CLASSIFIER = {
  'dense/kernel': np.zeros((4, 7), np.float32),
  'dense/bias': np.zeros(7, np.float32),
  'global_step': np.int64(112603),
}


def make_variables(**options):
  """Shapes of the variables of a small model."""
  return narrow_models.shapes(narrow_models.make_model(**options))


@pytest.fixture(name='variables', scope='module')
def fixture_variables():
  return make_variables()


def google_tensors(depth=50):
  return tensorflow_checkpoint.google_backbone(depth, narrow_models.WIDTH)


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


def test_the_report_of_a_backbone(google, variables):
  _, report = external.load(google, variables)
  assert report.kind == external.kind(google) == 'backbone'
  assert len(report.loaded) == 265
  assert report.unexpected == ['dense/bias', 'dense/kernel']
  assert report.training_state == ['global_step']
  heads = [x for x in load_report.flatten(variables) if 'backbone/' not in x]
  assert sorted(report.missing) == sorted(heads)
  assert str(report).splitlines() == [
    f'Load report of {PREFIX} (backbone):',
    '  loaded: 265 tensors',
    '  unexpected: 2 tensors are not in the model (dense/bias, dense/kernel)',
    '  training state: 1 tensors are skipped (global_step)',
    f'  missing: {len(heads)} variables keep their initial values '
    '(box_head, fpn, mask_head, rpn_head)',
  ]


def test_blocks_count_as_numbers(tmp_path):
  """Block 10 of stage 4 comes after block 9, not after block 1."""
  tensors = google_tensors(depth=101)
  prefix = write(tmp_path, tensors)
  _, report = external.load(prefix, make_variables(depth=101))
  assert len(report.loaded) == len(tensors) == 104 * 5
  block = 'backbone/stage4/block10/conv1/kernel'
  # 1 + 10 + 13 calls before the stage, then 4 and 8 times 3.
  assert report.loaded[block] == f'conv2d_{1 + 10 + 13 + 4 + 8 * 3}/kernel'
  inferred = external.infer_model(prefix)
  assert inferred.config == 'coco:habana_1x'
  assert {*inferred.overrides} == {
    'model.backbone.depth=101',
    f'model.backbone.width={narrow_models.WIDTH}',
  }


def test_trainable_norm_has_scale_and_bias_among_the_parameters(google):
  variables = make_variables(norm='batch')
  loaded, report = external.load(google, variables)
  assert len(report.loaded) == 265
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


def test_a_longer_mask_head_is_refused(tmp_path, variables):
  """All layers of the heads count in a whole model."""
  tensors = google_tensors() | {'fpn/l2/kernel': np.zeros(1, np.float32)}
  name = tensorflow.find_format(tensors).name
  rng = np.random.default_rng(0)
  for path, x in load_report.flatten(variables).items():
    tensors[name(path)] = rng.normal(size=x.shape).astype(np.float32)
  deconv = name('mask_head/deconv/kernel')
  tensors[deconv] = tensors[deconv].swapaxes(2, 3)
  _, report = external.load(write(tmp_path, tensors), variables)
  assert report.kind == 'model' and not report.missing
  longer = 'mask_head/mask-conv-l1/bias'
  tensors[longer] = np.zeros(16, np.float32)
  assert error(write(tmp_path, tensors), variables).item == (longer,)


def test_group_norm_has_no_statistics(google):
  found = error(google, make_variables(norm='group'))
  assert (found.argument, found.given) == ('model.backbone.norm', 'group')


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_short_floats_become_float32(tmp_path, variables, dtype):
  tensors = google_tensors()
  short = {name: x.astype(dtype) for name, x in tensors.items()}
  loaded, _ = external.load(write(tmp_path, short), variables)
  kernel = loaded['params']['backbone']['stem']['conv']['kernel']
  assert kernel.dtype == np.float32
  np.testing.assert_array_equal(
    kernel, short['conv2d/kernel'].astype(np.float32)
  )


def error(prefix, variables):
  with pytest.raises(UserError) as raised:
    external.load(prefix, variables)
  return raised.value


def test_missing_and_misshaped_tensors_are_listed(tmp_path, variables):
  tensors = google_tensors()
  del tensors['conv2d_7/kernel']
  tensors['conv2d/kernel'] = tensors['conv2d/kernel'][:3]
  tensors['batch_normalization/gamma'] = np.zeros(narrow_models.WIDTH, np.int32)
  prefix = write(tmp_path, tensors)
  found = error(prefix, variables)
  assert found.path == str(prefix)
  assert sorted(found.item) == [
    'backbone/stage2/block2/conv3/kernel',
    'backbone/stem/conv/kernel',
    'backbone/stem/norm/scale',
  ]
  third, first, second = sorted(str(found).splitlines()[1:])
  assert '(3, 7, 3, 8)' in first and '(7, 7, 3, 8)' in first
  assert 'batch_normalization/gamma' in second and 'int32' in second
  assert 'conv2d_7/kernel' in third and '(1, 1, 8, 32)' in third


def test_a_long_list_of_errors_is_shortened(tmp_path, variables):
  tensors = {name: x[..., :1] for name, x in google_tensors().items()}
  found = error(write(tmp_path, tensors), variables)
  assert len(found.item) == 265
  lines = str(found).splitlines()
  assert len(lines) == 12
  assert '255' in lines[-1]


def test_a_deeper_backbone_is_refused(tmp_path, variables):
  found = error(write(tmp_path, google_tensors(depth=101)), variables)
  assert 'model.backbone.depth' in str(found)


def test_a_prefix_may_have_the_suffix_of_one_of_its_files(google, variables):
  for suffix in ('.index', '.data-00000-of-00001', '.meta'):
    _, report = external.load(f'{google}{suffix}', variables)
    assert report.source == PREFIX


def test_a_folder_with_a_state_file(google, variables):
  # As it is written on another machine.
  state = f'model_checkpoint_path: "/elsewhere/{PREFIX}"\n'
  (google.parent / 'checkpoint').write_text(
    state + 'all_model_checkpoint_paths: "model.ckpt-1"\n'
  )
  _, report = external.load(google.parent, variables)
  assert report.source == PREFIX


def test_invalid_state_files(google, variables):
  folder = google.parent
  found = error(folder, variables)
  assert found.path == str(folder / 'checkpoint')
  assert found.wanted == [PREFIX]
  (folder / 'checkpoint').write_text('model_checkpoint_path: "other"\n')
  found = error(folder, variables)
  assert found.path == str(folder / 'other')
  assert found.wanted == [PREFIX]
  assert PREFIX in str(found)


def test_a_wrong_prefix(google, tmp_path, variables):
  found = error(tmp_path / 'model.ckpt-112602', variables)
  assert found.path == str(tmp_path / 'model.ckpt-112602')
  assert found.wanted == [PREFIX]
  assert f"'{PREFIX}'" in str(found)
  assert str(tmp_path / 'no') in str(error(tmp_path / 'no' / PREFIX, variables))


def data_file(prefix):
  return pathlib.Path(f'{prefix}.data-00000-of-00001')


def test_missing_data(google, variables):
  data_file(google).unlink()
  assert error(google, variables).path == str(data_file(google))


@pytest.mark.parametrize('is_changed', [False, True])
def test_corrupt_data(google, variables, is_changed):
  """Truncated, or with another bit."""
  path = data_file(google)
  content = path.read_bytes()
  changed = bytes([content[1000] ^ 1]) + content[1001:]
  path.write_bytes(content[:1000] + changed * is_changed)
  found = error(google, variables)
  assert found.path == str(path)
  assert found.item in google_tensors()


@pytest.mark.parametrize('size', [0, 100])
def test_a_corrupt_index(google, variables, size):
  path = pathlib.Path(f'{google}.index')
  path.write_bytes(path.read_bytes()[:size])
  assert error(google, variables).path == str(path)


def test_a_checkpoint_of_another_kind_of_model(tmp_path, variables):
  names = [f'bert/layer_{index}/kernel' for index in range(7)]
  prefix = write(tmp_path, dict.fromkeys(names, np.zeros(2, np.float32)))
  found = error(prefix, variables)
  assert (found.path, found.item) == (str(prefix), names[0])
  assert names[1] in str(found)
  with pytest.raises(UserError):
    external.kind(prefix)
