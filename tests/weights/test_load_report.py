"""Loading of arrays into variables: what must fit, and what is reported."""

import dataclasses

import numpy as np
import pytest

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import load_report
from maskrcnn_jax.weights.load_report import STRICT, LoadOptions
from maskrcnn_jax.weights.tensor_files import Tensors

PARTIAL = LoadOptions(strict=False)
# Three classes with background.
SHAPES = {
  'backbone/stem/conv/kernel': (7, 7, 3, 4),
  'backbone/stem/norm/scale': (4,),
  'backbone/stage2/block1/conv1/kernel': (3, 3, 4, 4),
  'fpn/lateral2/kernel': (1, 1, 4, 2),
  'box_head/class_logits/kernel': (6, 3),
  'box_head/class_logits/bias': (3,),
  'box_head/box_deltas/bias': (12,),
  'mask_head/mask_logits/bias': (3,),
}
FIVE_CLASSES = SHAPES | {
  'box_head/class_logits/kernel': (6, 5),
  'box_head/class_logits/bias': (5,),
  'box_head/box_deltas/bias': (20,),
  'mask_head/mask_logits/bias': (5,),
}
PREDICTORS = {x for x in SHAPES if FIVE_CLASSES[x] != SHAPES[x]}


def zeros():
  """Variables of `SHAPES`; the norm is in another collection."""
  tree = {'params': {}, 'batch_stats': {}}
  for name, shape in SHAPES.items():
    *scopes, leaf = name.split('/')
    inner = tree['batch_stats' if '/norm/' in name else 'params']
    for scope in scopes:
      inner = inner.setdefault(scope, {})
    inner[leaf] = np.zeros(shape, np.float32)
  return tree


def load(shapes, options, layers=(), prefix=''):
  """The report of loading arrays of ones, which the variables agree with."""
  tensors = {prefix + k: np.ones(x, np.float32) for k, x in shapes.items()}
  tensors |= dict.fromkeys(layers, np.ones(1, np.float32))
  form = dataclasses.replace(load_report.OURS, name=lambda name: prefix + name)
  filled, report = load_report.load(
    Tensors('w.pth', tensors), form, zeros(), options
  )
  flat = load_report.flatten(filled)
  assert {k: x.shape for k, x in flat.items()} == SHAPES
  for name, array in flat.items():
    assert np.all(array == (name in report.loaded)), name
  return report


def error(*args, **kwargs):
  with pytest.raises(UserError) as raised:
    load(*args, **kwargs)
  assert raised.value.path == 'w.pth'
  return raised.value


def test_weights_for_other_classes_fit_except_for_the_predictors():
  report = load(FIVE_CLASSES, PARTIAL)
  assert report.mismatched.keys() == PREDICTORS
  for name, why in report.mismatched.items():
    assert str(FIVE_CLASSES[name]) in why and str(SHAPES[name]) in why
  assert report.loaded.keys() == SHAPES.keys() - PREDICTORS
  assert not report.unexpected
  lines = str(report).splitlines()
  assert len([x for x in lines for name in PREDICTORS if name in x]) == 4


def test_other_classes_are_an_error_if_all_must_fit():
  found = error(FIVE_CLASSES, STRICT)
  assert {*found.item} == PREDICTORS
  assert found.argument == 'model.num_classes'
  assert (found.given, found.wanted) == (3, 5)
  assert 'model.num_classes=5' in str(found)
  assert 'training.finetune=true' in str(found)


def test_predictors_that_fit_are_reset_on_request():
  report = load(SHAPES, LoadOptions(strict=False, reset_predictors=True))
  assert report.mismatched.keys() == PREDICTORS
  assert report.loaded.keys() == SHAPES.keys() - PREDICTORS
  assert load(SHAPES, PARTIAL).loaded.keys() == SHAPES.keys()


def test_the_backbone_must_always_fit():
  stem = 'backbone/stem/conv/kernel'
  other = FIVE_CLASSES | {stem: (7, 7, 3, 8)}
  assert error(other, PARTIAL).item == (stem,)
  del other[stem]
  assert error(other, PARTIAL).item == (stem,)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_values_must_be_finite(value):
  arrays = {k: np.ones(x, np.float32) for k, x in SHAPES.items()}
  arrays['fpn/lateral2/kernel'][0, 0, 1, 1] = value
  with pytest.raises(UserError) as raised:
    load_report.load(Tensors('w.pth', arrays), load_report.OURS, zeros())
  assert raised.value.item == ('fpn/lateral2/kernel',)


def test_unknown_layers_are_an_error_in_the_backbone_or_if_all_must_fit():
  layers = ['body/backbone/stage6/kernel', 'body/mask_head/conv9/kernel']
  assert error(SHAPES, PARTIAL, layers, 'body/').item == (layers[0],)
  report = load(SHAPES, PARTIAL, layers[1:], 'body/')
  assert report.unexpected == layers[1:]
  assert layers[1] in str(report)
  assert error(SHAPES, STRICT, layers[1:], 'body/').item == (layers[1],)
