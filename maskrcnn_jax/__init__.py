"""Mask R-CNN in JAX and Flax: the names for notebooks.

They are imported on first use, so that `import maskrcnn_jax` is instant and
loads neither TensorFlow nor matplotlib.
"""

import importlib

# Name -> module that defines it.
_HOMES = {
  'load_config': 'config',
  'MaskRCNN': 'models.mask_rcnn',
  'Instances': 'structures',
  'Detections': 'structures',
  'create_train_state': 'training.train_state',
  'train_step': 'training.train_step',
  'detect': 'inference.detection',
  'restore': 'checkpoints.store',
  'Predictor': 'inference.predictor',
  'Tracker': 'inference.tracking',
  'draw': 'visualize',
}

__version__ = '0.1.0'
__all__ = [  # noqa: RUF022, in order of use.
  'load_config',
  'MaskRCNN',
  'Instances',
  'Detections',
  'create_train_state',
  'train_step',
  'detect',
  'restore',
  'Predictor',
  'Tracker',
  'draw',
]


def __getattr__(name):
  if name not in _HOMES:
    raise AttributeError(f'Module {__name__!r} has no attribute {name!r}.')
  module = importlib.import_module(f'{__name__}.{_HOMES[name]}')
  return getattr(module, name)


def __dir__():
  return sorted([*globals(), *__all__])
