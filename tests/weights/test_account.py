"""What must fit, what may stay as it is, and that it is listed."""

import numpy as np
import pytest

from maskrcnn_jax.weights import account as account_lib
from maskrcnn_jax.weights.account import Account, Fit

PARTIAL = Fit(partial=True)
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


def nested(shapes, value):
  """Arrays of one value in nested dicts, the norm apart."""
  tree = {'params': {}, 'batch_stats': {}}
  for name, shape in shapes.items():
    collection = 'batch_stats' if '/norm/' in name else 'params'
    *scopes, leaf = name.split('/')
    place = tree[collection]
    for scope in scopes:
      place = place.setdefault(scope, {})
    place[leaf] = np.full(shape, value, np.float32)
  return tree


def fill(arrays, fit, excess=(), prefix=''):
  """The values after the arrays of 1 were put into variables of 0."""
  arrays = {k: np.ones(shape, np.float32) for k, shape in arrays.items()}
  names = {name: prefix + name for name in SHAPES}
  filled, misfits, left_over = account_lib.fill(
    nested(SHAPES, 0), arrays, names, 'w.pth', excess, fit
  )
  flat = account_lib.flatten(filled)
  assert {k: x.shape for k, x in flat.items()} == SHAPES
  taken = {name for name, x in flat.items() if np.all(x == 1)}
  assert all(np.all(x == (k in taken)) for k, x in flat.items())
  return taken, misfits, left_over


def of_five(**changes):
  """Shapes of the same network for five classes."""
  shapes = {**SHAPES, 'box_head/class_logits/kernel': (6, 5)}
  shapes['box_head/class_logits/bias'] = (5,)
  shapes['box_head/box_deltas/bias'] = (20,)
  shapes['mask_head/mask_logits/bias'] = (5,)
  return shapes | changes


def test_weights_of_other_classes_fit_but_for_the_predictors():
  taken, misfits, left_over = fill(of_five(), PARTIAL)
  assert misfits == {
    'box_head/class_logits/kernel': 'is (6, 5), wanted (6, 3)',
    'box_head/class_logits/bias': 'is (5,), wanted (3,)',
    'box_head/box_deltas/bias': 'is (20,), wanted (12,)',
    'mask_head/mask_logits/bias': 'is (5,), wanted (3,)',
  }
  assert taken == SHAPES.keys() - misfits.keys()
  assert left_over == []


def test_as_a_whole_they_do_not_fit_and_the_error_tells_both_ways_out():
  with pytest.raises(ValueError, match='4 tensors are wrong') as caught:
    fill(of_five(), account_lib.WHOLE)
  text = str(caught.value)
  assert 'trained for 5 classes with background, the model is for 3' in text
  assert 'set model.num_classes=5, or training.finetune=true' in text


def test_predictors_of_other_classes_start_anew_though_they_fit():
  fit = Fit(True, account_lib.PREDICTORS, 'is of other classes')
  taken, misfits, _ = fill(SHAPES, fit)
  assert set(misfits.values()) == {'is of other classes'}
  assert taken == {x for x in SHAPES if x.startswith(('backbone', 'fpn'))}
  assert fill(SHAPES, PARTIAL)[0] == SHAPES.keys()


def test_the_backbone_must_fit_whatever_else_does_not():
  other = of_five(**{'backbone/stem/conv/kernel': (7, 7, 3, 8)})
  with pytest.raises(ValueError, match='1 tensors are wrong') as caught:
    fill(other, PARTIAL)
  assert 'backbone/stem/conv/kernel <- ' in str(caught.value)
  del other['backbone/stem/conv/kernel']
  with pytest.raises(ValueError, match='is missing, wanted'):
    fill(other, PARTIAL)


def test_layers_that_the_model_lacks_are_left_over_outside_of_the_backbone():
  excess = ['body/backbone/stage6/kernel', 'body/mask_head/conv9/kernel']
  with pytest.raises(ValueError, match=r'stage6/kernel: the model has no such'):
    fill(SHAPES, PARTIAL, excess, prefix='body/')
  _, _, left_over = fill(SHAPES, PARTIAL, excess[1:], prefix='body/')
  assert left_over == excess[1:]
  with pytest.raises(ValueError, match=r'conv9/kernel: the model has no such'):
    fill(SHAPES, account_lib.WHOLE, excess[1:], prefix='body/')


def test_the_account_lists_every_misfit():
  account = Account(
    'w.pth',
    'model',
    {'fpn/lateral2/kernel': 'x'},
    misfits={'box_head/class_logits/bias': 'is (5,), wanted (3,)'},
    left_over=['mask_head/conv9/kernel'],
  )
  assert str(account).splitlines() == [
    '1 tensors of w.pth -> model',
    '1 variables do not fit and start from initial values:',
    '  box_head/class_logits/bias: is (5,), wanted (3,)',
    'left out: 1 of layers that the model does not have '
    '(mask_head/conv9/kernel)',
  ]
