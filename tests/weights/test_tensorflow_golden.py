"""Recorded runs of Habana and NVIDIA from weights in their checkpoints.

The weights of a recorded model are written as TensorFlow checkpoints, under the
names that were recorded with them, and read back.
"""

import re
import tempfile

import golden_files
import jax
import numpy as np
import pytest
import recorded_model
import recorded_run
import tensorflow_checkpoint

from maskrcnn_jax.ops import images as image_ops
from maskrcnn_jax.optimization import optimizer as optimizer_lib
from maskrcnn_jax.weights import external, load_report

# Names of the recordings -> names of NVIDIA's ResNet classifier.
_CLASSIFIER_RENAMES = (
  (r'^backbone/stem/', 'resnet50/conv2d/'),
  (
    r'^backbone/stage(\d)/block(\d+)/',
    lambda m: f'resnet50/btlnck_block_{int(m[1]) - 2}_{m[2]}/',
  ),
  (r'/shortcut/', '/shortcut/conv2d/'),
  (r'/conv(\d)/', r'/bottleneck_\1/'),
  (r'/conv/kernel$', '/conv2d/kernel'),
  (r'/bn/', '/BatchNorm/'),
)


def habana_name(entry):
  return entry['hb_name'].removesuffix(':0')


def google_name(entry):
  name = habana_name(entry)
  is_backbone = name.startswith('resnet50/')
  return name.removeprefix('resnet50/') if is_backbone else None


def nvidia_name(entry):
  return entry['nv_name'].removesuffix(':0')


def classifier_name(entry):
  name = entry['name']
  if not name.startswith('backbone/'):
    return None
  for pattern, replacement in _CLASSIFIER_RENAMES:
    name = re.sub(pattern, replacement, name)
  return name


# Layout -> variant, function that names a variable, function that writes it.
LAYOUTS = {
  'google': ('hb', google_name, tensorflow_checkpoint.write_named),
  'classifier': ('nv', classifier_name, tensorflow_checkpoint.write_named),
  'habana': ('hb', habana_name, tensorflow_checkpoint.write_named),
  'nvidia': ('nv', nvidia_name, tensorflow_checkpoint.write_objects),
}
BACKBONES = ('google', 'classifier')
CASES = [(path, name) for path in recorded_run.MANIFESTS for name in LAYOUTS]
MODELS = [case for case in CASES if case[1] not in BACKBONES]


def make_tensors(manifest, layout):
  """Tensors of a checkpoint of this layout, and the number of weights."""
  recorded = golden_files.load(manifest)
  _, name_of, _ = LAYOUTS[layout]
  tensors = {}
  for entry in recorded_model.manifest(recorded):
    if name := name_of(entry):
      salt = recorded_model.salt(recorded)
      tensors[name] = recorded_model.make_array(entry, salt)
  count = len(tensors)
  if layout == 'habana':
    tensors['global_step'] = np.int64(90000)
    for entry in recorded_model.manifest(recorded):
      if entry['trainable']:
        # Not read, so of any shape.
        tensors[f'{habana_name(entry)}/Momentum'] = np.zeros(1, np.float32)
  elif layout in BACKBONES:
    tensors['dense/kernel'] = np.zeros((2, 3), np.float32)
  return tensors, count


def load(manifest, layout):
  """Variables that were zeros before they were loaded, and the report."""
  tensors, count = make_tensors(manifest, layout)
  _, _, write = LAYOUTS[layout]
  zeros = jax.tree.map(np.zeros_like, recorded_run.formula_variables(manifest))
  with tempfile.TemporaryDirectory() as folder:
    write(f'{folder}/model.ckpt-1', tensors)
    loaded, report = external.load(f'{folder}/model.ckpt-1', zeros)
  assert len(report.loaded) == count
  return loaded, report


def case_id(case):
  return f'{case[0].stem.removesuffix("_manifest")}-{case[1]}'


@pytest.fixture(name='imported', scope='module', params=CASES, ids=case_id)
def fixture_imported(request):
  """The case, the layout, the variables and the load report."""
  manifest, layout = request.param
  case = recorded_run.load_case(manifest, LAYOUTS[layout][0])
  return case, layout, *load(manifest, layout)


def test_every_weight_is_loaded(imported):
  case, layout, variables, report = imported
  assert report.kind == ('backbone' if layout in BACKBONES else 'model')
  assert len(report.loaded) == (265 if layout in BACKBONES else 307)
  expected = load_report.flatten(case.variables)
  for name, array in load_report.flatten(variables).items():
    if name in report.loaded:
      assert array.dtype == np.float32
      np.testing.assert_array_equal(array, expected[name], err_msg=name)
    else:
      assert name in report.missing
      assert not np.any(array)


def test_tensors_that_are_not_loaded(imported):
  _, layout, _, report = imported
  assert list(report.unexpected) == ['dense/kernel'] * (layout in BACKBONES)
  if layout == 'habana':
    assert len(report.training_state) == 84 + 1
    assert 'box_head/box-predict/bias/Momentum' in str(report)


@pytest.mark.slow
def test_features_of_the_backbone(imported):
  """C2 to C5, also from a checkpoint of the backbone alone."""
  case, _, variables, _ = imported

  def features(model, images, image_sizes):
    return model.body(
      image_ops.normalize(
        images, image_sizes, model.pixel_mean, model.pixel_std
      )
    )

  maps = jax.jit(
    lambda variables, images, image_sizes: case.model.apply(
      variables, images, image_sizes, method=features
    )
  )(variables, case.pixels, case.image_sizes)
  assert sorted(maps) == [2, 3, 4, 5]
  recorded_run.assert_maps(maps, case.files['eval'], 'C')


@pytest.mark.slow
@pytest.mark.parametrize('imported', MODELS, indirect=True, ids=case_id)
def test_losses(imported):
  """Each loss, with the recorded RoIs and targets."""
  case, _, variables, _ = imported
  trainable = recorded_run.trainable_parameters(case)

  @jax.jit
  def run(variables, inputs):
    losses, _ = recorded_run.training_losses(case.model, variables, inputs)
    losses['l2_loss'] = optimizer_lib.weight_decay_loss(
      variables['params'], trainable, case.optimizer.weight_decay
    )
    return losses

  losses = run(variables, recorded_run.make_train_inputs(case))
  recorded_run.assert_losses(losses, case.files['train'])
