"""Small Mask R-CNN on drawn shapes: minutes of training on two CPU cores.

`python data/shapes/shapes.py --output local/shapes` draws the images.

Variants, as in `--config=shapes:finetune`:
  demo: the shapes, the default.
  finetune: other classes, from the weights of the demo; docs/finetuning.md.
  nuclei: the same for microscope images with hundreds of nuclei.
  nuclei_from_scratch: the same from random values, in as many steps.
"""

from ml_collections.config_dict import placeholder

from maskrcnn_jax import config as config_lib


def get_config(variant='demo'):
  """The config of a variant; the command line can override every field.

  Fields that are not listed are those of `configs/coco.py`.
  """
  config = config_lib.load_config('coco')
  config.update(
    {
      'model': _model(),
      'input': {
        'file_pattern': 'local/shapes:train',
        'canvases': ((128, 128),),
        'batch_size': 8,
        'max_instances': 8,  # Images have at most 8 shapes.
        'mask_size': 56,
      },
      'optimizer': {
        # From 0.08 on, training diverges from some random seeds.
        'learning_rate': 0.05,
        'tuned_batch_size': 8,
        'warmup_steps': 200,
        'decay_steps': (1000, 1250),
        'clip_global_norm': 5.0,
      },
      'training': {
        'num_steps': 1400,
        'checkpoint_every_steps': 350,
        'keep_checkpoints': 2,
        'pretrained': '',
      },
      'evaluation': {
        'file_pattern': 'local/shapes:val',
        'annotations_file': 'local/shapes/annotations_val.json',
        'batch_size': 20,
        'every_steps': 0,
      },
    }
  )
  VARIANTS[variant](config)
  return config


def _model():
  """A ResNet-18 with half the channels, and small heads."""
  proposals = {'pre_nms_top_k': 200, 'post_nms_top_k': 100}
  return {
    'num_classes': 5,  # Background, disc, square, triangle, cross.
    'backbone': {
      'depth': 18,
      'width': 32,
      'norm': 'batch',
      'norm_epsilon': 1e-5,
      'norm_momentum': 0.9,
      'frozen_stages': 0,
    },
    'pyramid_channels': 64,
    'max_level': 5,
    'box_channels': 256,
    'mask_channels': 64,
    'mask_convs': 2,
    'mask_size': 10,
    # Anchors of 16 and 22 pixels on the finest level.
    'anchors': {'scale': 4.0, 'scales_per_octave': 2},
    'train_proposals': proposals,
    'test_proposals': proposals,
    'rpn_targets': {'num_samples': 64},
    'sampling': {
      'fill_up': False,
      'num_rois': 32,
      'foreground_fraction': 0.5,
    },
    'roi_align': {'max_level': 5},
    'detections': {'max_detections': 20, 'score_threshold': 0.05},
    'losses': {'rpn_samples': 64},
  }


def _demo(config):
  """The shapes, from random values."""
  del config  # Nothing to change.


def _finetune(config):
  """Other classes, from the weights of the demo."""
  # Counted in the records, plus the background.
  config.model.num_classes = placeholder(int)
  config.model.detections.max_detections = 100
  config.input.file_pattern = 'local/own/train*.tfrecord'
  config.input.max_instances = 100
  config.evaluation.file_pattern = 'local/own/val*.tfrecord'
  config.evaluation.annotations_file = ''
  config.evaluation.batch_size = 4
  config.evaluation.every_steps = 100
  config.training.pretrained = 'local/demo'
  config.training.finetune = True
  config.training.num_steps = 600
  config.training.checkpoint_every_steps = 100
  # Few steps need a short warm-up.
  config.optimizer.warmup_steps = 100
  config.optimizer.decay_steps = (2 / 3, 13 / 15)


def _nuclei(config):
  """Nuclei of BBBC038: one class, up to 206 of them in an image."""
  _finetune(config)
  config.input.file_pattern = 'local/nuclei/train*.tfrecord'
  config.input.canvases = ((256, 256),)
  config.input.batch_size = 4
  config.optimizer.learning_rate = 0.08  # Of a batch of 8.
  config.input.max_instances = 256
  config.model.num_classes = 2
  config.model.detections.max_detections = 256
  # More objects need more proposals and more sampled RoIs.
  config.model.train_proposals.pre_nms_top_k = 400
  config.model.train_proposals.post_nms_top_k = 200
  config.model.test_proposals.pre_nms_top_k = 800
  config.model.test_proposals.post_nms_top_k = 400
  config.model.rpn_targets.num_samples = 128
  config.model.losses.rpn_samples = 128
  config.model.sampling.num_rois = 64
  config.evaluation.file_pattern = 'local/nuclei/val*.tfrecord'
  config.training.pictures = 4


def _nuclei_from_scratch(config):
  """The same, from random values."""
  _nuclei(config)
  config.training.pretrained = ''
  config.training.finetune = False


VARIANTS = {
  'demo': _demo,
  'finetune': _finetune,
  'nuclei': _nuclei,
  'nuclei_from_scratch': _nuclei_from_scratch,
}
