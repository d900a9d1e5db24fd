"""Mask R-CNN with ResNet-50 and a feature pyramid on COCO.

Variants, as in `--config=coco:nvidia_1x`:
  habana_1x: Habana's recipe for one device, the default.
  habana_1x_batch12: the same with 12 images a step.
  habana_8x, habana_8x_batch12: the same for eight devices.
  NAME_bf16 of each of these: in bfloat16, as Habana recommends.
  nvidia_1x: NVIDIA's system, from which Habana's descends; eight devices.
  torchvision: maskrcnn_resnet50_fpn, 26 epochs on eight devices.
  torchvision_v2: maskrcnn_resnet50_fpn_v2, without its long schedule.
  torchvision_v2_400ep: the same with it, from random values.
  detectron2: Detectron2's R50-FPN, 3x; R101-FPN with model.backbone.depth=101.
  detectron2_1x, detectron2_3x: the same from ImageNet, in six sizes.
  lsj_100ep, lsj_400ep: the same from random values, with large-scale jitter.
  copy_paste: Google's, with objects of other images; the highest AP of these.
  mlperf: MLPerf's reference, for 96 images a step.
  convnext_tiny: Detectron2's heads on a ConvNeXt-T, from ImageNet.
  vitdet_b, vitdet_l: Detectron2's ViTDet with a ViT-B or a ViT-L.
  vitdet_b_100ep, vitdet_l_100ep: the same with their recipes.
  convnext_tiny_3x: the same with its recipe.
  from_scratch: Habana's recipe without pretrained weights, with group norm.
  finetune: other classes, from weights of a Mask R-CNN; docs/finetuning.md.
  overfit: overfits a handful of images on a CPU.

Recipes with a published AP are compared in docs/recipes.md.
"""

import functools

from ml_collections.config_dict import ConfigDict, placeholder

# Folders of data/download_pretrained_weights.sh.
_GOOGLE_BACKBONE = 'weights/resnet/resnet-nhwc-2018-02-07/model.ckpt-112603'
_NVIDIA_BACKBONE = 'weights/rn50_tf_amp_ckpt_v20.06.0/nvidia_rn50_tf_amp'


def get_config(variant='habana_1x'):
  """The config of a variant; the command line can override every field."""
  config = ConfigDict(
    {
      'model': _model(),
      'input': _input(),
      'optimizer': _optimizer(),
      'training': _training(),
      'evaluation': _evaluation(),
      'runtime': _runtime(),
    }
  )
  VARIANTS[variant](config)
  return config


def _model():
  """The network: fields of MaskRCNN."""
  return {
    'num_classes': 91,  # Number of classes with background, class 0.
    'backbone': {  # BackboneOptions; those of a ResNet first.
      'kind': 'resnet',  # Kind of backbone: resnet, convnext or vit.
      'depth': 50,  # Number of layers: 18, 34, 50, 101 or 152.
      'width': 64,  # Channels of the stem.
      'groups': 1,  # Groups of 3x3 convolutions; ResNeXt-101-32x8d has 32.
      'group_width': 64,  # Channels of a group in stage 2; 8 there.
      'norm': 'frozen',  # Normalization: frozen, batch or group.
      'norm_epsilon': 1e-4,  # Epsilon added to the variance.
      'norm_momentum': 0.997,  # Decay of the running statistics of batch norm.
      'group_channels': 4,  # Fewest channels per group of group norm.
      'stride_in_1x1': False,  # Bottleneck stride in the 1x1, not in the 3x3.
      'padding': 'symmetric',  # Padding of strided convolutions, or same.
      'pool_padding': 'same',  # Padding of the max-pool, or symmetric.
      'frozen_stages': 2,  # Number of frozen stages, counted from the stem.
      'convnext': {  # ConvNeXtOptions.
        'blocks': (3, 3, 9, 3),  # Number of blocks of stages 2 to 5.
        'widths': (96, 192, 384, 768),  # Channels of stages 2 to 5.
        'output_norms': True,  # Layer norm of every map that leaves.
        'drop_path': 0.0,  # Chance that training skips the last block.
        'remat': False,  # Less memory: blocks run again in the backward pass.
      },
      'vit': {  # ViTOptions.
        'width': 768,  # Channels of a token.
        'depth': 12,  # Number of blocks.
        'heads': 12,  # Number of attention heads.
        'window': 14,  # Side of the windows of local attention, in tokens.
        'global_blocks': (2, 5, 8, 11),  # Blocks that see the whole image.
        'position_side': 14,  # Side of the grid of absolute positions.
        'table_side': 64,  # Side of the map of stored relative positions.
        'drop_path': 0.0,  # Chance that training skips the last branches.
        'remat': False,  # Less memory: blocks run again in the backward pass.
      },
    },
    'pyramid_channels': 256,  # Channels of every pyramid level.
    'max_level': 6,  # Coarsest pyramid level; the finest is 2.
    'rpn_convs': 1,  # Number of 3x3 convolutions of the RPN head.
    'box_convs': 0,  # Number of 3x3 convolutions of the box head.
    'box_dense': 2,  # Number of dense layers of the box head.
    'box_channels': 1024,  # Width of the dense layers of the box head.
    'mask_channels': 256,  # Channels of the mask head.
    'mask_convs': 4,  # Number of 3x3 convolutions of the mask head.
    'head_norm': {  # NormOptions of the pyramid, the box and the mask head.
      'kind': 'none',  # Normalization: none, frozen, batch or group.
      'epsilon': 1e-5,  # Epsilon added to the variance.
      'momentum': 0.9,  # Decay of the running statistics of batch norm.
    },
    'box_size': 7,  # Side of the RoI features of the box head.
    'mask_size': 14,  # Side of the RoI features of the mask head.
    'mask_upsample': 2,  # Side of a mask relative to these: 2, or 4 for 56x56.
    'anchors': {  # AnchorOptions.
      'scale': 8.0,  # Side of an anchor in cells of its level.
      'scales_per_octave': 1,  # Number of anchor sizes per level.
      # (width, height) of an anchor relative to its side.
      'aspect_ratios': ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4)),
      'rounded': False,  # Anchor corners rounded to whole pixels.
      'centered': True,  # First anchor in the centre of its cell, or corner.
      'fitted_strides': False,  # Stride is canvas // feature size, or 2**level.
    },
    'train_proposals': {  # ProposalOptions in training.
      'pre_nms_top_k': 2000,  # Number of anchors per level before NMS.
      'post_nms_top_k': 1000,  # Number of proposals per image after NMS.
      'iou_threshold': 0.7,  # NMS IoU threshold.
      'min_size': 0.0,  # Smallest side of a proposal; 0 keeps all.
    },
    'test_proposals': {  # ProposalOptions in detection.
      'pre_nms_top_k': 1000,  # Number of anchors per level before NMS.
      'post_nms_top_k': 1000,  # Number of proposals per image after NMS.
      'iou_threshold': 0.7,  # NMS IoU threshold.
      'min_size': 0.0,  # Smallest side of a proposal; 0 keeps all.
    },
    'rpn_targets': {  # RPNTargetOptions.
      'matching': {  # MatchingOptions of anchors.
        'positive_iou': 0.7,  # Smallest IoU of a positive anchor.
        'negative_iou': 0.3,  # IoU below which an anchor is negative.
        'positive_strict': False,  # Positive needs more than positive_iou.
        # Low-quality matches per instance: none, one anchor, or all the best.
        'low_quality_matches': 'one',
      },
      'num_samples': 256,  # Number of sampled anchors per image.
      'positive_fraction': 0.5,  # Largest fraction of positives among them.
    },
    'sampling': {  # SamplingOptions.
      'matching': {  # MatchingOptions of proposals.
        'positive_iou': 0.5,  # Smallest IoU of a foreground RoI.
        'negative_iou': 0.5,  # IoU below which a RoI is background.
        'positive_strict': True,  # Foreground needs more than positive_iou.
        'low_quality_matches': 'none',  # Low-quality matches: none, one, all.
      },
      'fill_up': True,  # Extra foreground where background is scarce.
      'num_rois': 512,  # Number of sampled RoIs per image.
      'foreground_fraction': 0.25,  # Largest fraction of foreground among them.
      # Foreground RoIs per image of the mask head; None: all of them.
      'num_mask_rois': placeholder(int),
    },
    'roi_align': {  # RoiAlignOptions.
      'samples_per_bin': 1,  # Number of samples per bin and axis.
      # Samples as many as a bin has cells (Detectron2), for boxes up to this
      # many cells a side; None: samples_per_bin.
      'adaptive_side': placeholder(int),
      'half_pixel': False,  # Shift by half a pixel, as aligned=True elsewhere.
      'min_level': 2,  # Finest pyramid level of RoIs.
      'max_level': 6,  # Coarsest pyramid level of RoIs.
      'level_epsilon': 0.0,  # Epsilon added before a level is rounded down.
      'min_side': 0.0,  # Smallest side of a RoI, in cells.
      'zero_outside': False,  # Samples outside the map are 0, or its border.
      'dtype': placeholder(str),  # Type of resampling; None: of the features.
    },
    'detections': {  # DetectionOptions.
      'max_detections': 100,  # Number of detections per image.
      'score_threshold': 0.0,  # Score that a detection must exceed.
      'iou_threshold': 0.5,  # NMS IoU threshold.
      # NMS by boxes within each class (class) or over all (all), or by masks
      # within each class (mask).
      'nms': 'class',
      'min_size': 0.0,  # Smallest side of a detection; 0 keeps all.
      # Rule that pastes masks into images: whole_pixels (Detectron,
      # torchvision) or continuous (Detectron2).
      'mask_pasting': 'whole_pixels',
    },
    'losses': {  # LossOptions.
      # RPN normalizer: means per level (levels), the number of sampled anchors
      # (sampled), or images times rpn_samples (images).
      'rpn_normalizer': 'levels',
      'rpn_samples': 256,  # The same number as rpn_targets.num_samples.
      'rpn_delta': 1 / 9,  # Delta of the Huber loss of RPN boxes; 0: L1.
      # Box normalizer: coordinates of the foreground, or all rois.
      'box_normalizer': 'foreground',
      'box_delta': 1.0,  # Delta of the Huber loss of the box head; 0: L1.
      'smooth_l1': False,  # Huber losses divided by their delta.
    },
    'plus_one': True,  # Box side is b - a + 1 where deltas are coded.
    'box_weights': (10.0, 10.0, 5.0, 5.0),  # Weights of (dy, dx, dh, dw).
    'mask_threshold': 0.5,  # Threshold of mask targets; None: soft targets.
    'pixel_mean': (0.485, 0.456, 0.406),  # Mean of RGB in 0..1, ImageNet's.
    'pixel_std': (0.229, 0.224, 0.225),  # Deviation of RGB, ImageNet's.
    'bgr': False,  # Channel order of the backbone is BGR; images are RGB.
    # Type of convolutions: float32, bfloat16 or bfloat16_products.
    'dtype': 'float32',
  }


def _input():
  """The training data: arguments of train_batches."""
  return {
    # Record files, or a TFDS directory with its split, as in DIR:train.
    'file_pattern': 'local/coco/train*.tfrecord',
    # Input sizes (height, width); the one that shrinks an image least is taken.
    'canvases': ((832, 1344),),
    'batch_size': 4,  # Images per step over all devices and hosts.
    'max_instances': 100,  # Objects per image; the largest are kept.
    'mask_size': 112,  # Side of the mask crop of an instance.
    'flip': True,  # Horizontal flips of half of the images.
    'seed': 0,  # Random seed of order and augmentation.
    'image_dtype': 'uint8',  # Type of images: uint8 (rounded) or float32.
    # JPEG pixels of Pillow, torchvision and Detectron2, not of TensorFlow.
    'accurate_jpeg': False,
    'num_threads': placeholder(int),  # Threads; None: one per CPU, at most 16.
    # Cache in memory: rows, records or nothing; None: the first that fits.
    'cache': placeholder(str),
    # Share of the images below which a class is shown more often; 0: none.
    'repeat_factor_threshold': 0.0,
    'repeat_first': False,  # Repetition of the first batch, for benchmarks.
    # Fraction of rows with unreadable images or objects that stops the run.
    'max_unreadable_share': 0.05,
    'max_pixels': placeholder(int),  # Of the largest image; None: 2**26.
    'resize': {  # ResizeOptions.
      # (shorter, longer) side to fit into; None: the canvas.
      'fit_size': placeholder(tuple),
      # Sizes in double precision with a scale per axis, as torchvision.
      'exact_sizes': False,
      # Nearest neighbours of pixel centres for masks, as TensorFlow.
      'half_pixel_masks': True,
    },
    'augment': {  # AugmentOptions, beside the flip; docs/augmentation.md.
      # Choice of the shorter side, like (640, 672, 704, 736, 768, 800).
      'short_edges': placeholder(tuple),
      # Factors of the size that fits the canvas, such as (0.1, 2.0); the rest
      # is cropped. None: always 1.
      'scale_range': placeholder(tuple),
      'vertical_flip': False,  # Vertical flips of half of the images.
      'quarter_turns': False,  # Turns by 0, 90, 180 or 270 degrees.
      'rotation': 0.0,  # Largest angle in degrees, to both sides.
      # Smallest share of a side that a random crop keeps; None: no crop.
      'crop': placeholder(float),
      # Shorter sides like (400, 500, 600), at one of which half of the images
      # are cropped to pixels (DETR, ConvNeXt). None: no such crop.
      'crop_short_edges': placeholder(tuple),
      'crop_sides': (384, 600),  # Smallest and largest side of that crop.
      # Changes of brightness, contrast, saturation, hue and channel order.
      'photometric': False,
      # Share of images that objects of another image are pasted onto.
      'copy_paste': 0.0,
      # An object under pasted ones is removed if a side of its box moves by
      # more than this, in pixels,
      'occluded_move': 10.0,
      'occluded_area': 300,  # and if no more than these pixels are left.
    },
  }


def _optimizer():
  """Fields of OptimizerOptions."""
  return {
    'kind': 'sgd',  # Optimizer: sgd with momentum, or adamw.
    'learning_rate': 0.005,  # Learning rate after warm-up.
    # Batch size of this learning rate, which is scaled for another batch unless
    # it is overridden too. None: never scaled.
    'tuned_batch_size': 4,
    # Parts of a batch, one after another, to save memory; a step stays a batch.
    'accumulate_steps': 1,
    'warmup_steps': 1000,  # Steps of linear warm-up.
    'warmup_learning_rate': 0.0,  # Learning rate of the first step.
    'schedule': 'steps',  # Schedule of the rate: steps or cosine.
    # Length of the schedule; None: training.num_steps.
    'num_steps': placeholder(int),
    # Last steps before the rate decays; below 1: shares of the schedule.
    'decay_steps': (240_000, 320_000),
    'decay_factors': (0.1, 0.01),  # Factors of the rate after these steps.
    'inclusive_decay': True,  # Decay after those steps, not at them.
    'final_factor': 0.0,  # Factor of the rate at the end of a cosine.
    'cosine_after_warmup': False,  # Cosine from the end of warm-up, or step 0.
    'momentum': 0.9,  # Momentum of SGD.
    # Decays of AdamW's means of gradients and of squares.
    'adam_decays': (0.9, 0.999),
    'adam_epsilon': 1e-8,  # Added to the root of AdamW's mean of squares.
    # Weight decay: an L2 loss with SGD, decoupled from it with AdamW.
    'weight_decay': 1e-4,
    # Decayed parameters: kernels, all_but_norms, all_but_backbone_norms, all.
    'decayed': 'kernels',
    # Factor of the rate from a backbone layer to the one before; None: one
    # rate.
    'layer_decay': placeholder(float),
    'bias_gradient_factor': 2.0,  # Factor of bias gradients, as Detectron's.
    'rate_in_momentum': False,  # Rate applied before the momentum, as Keras.
    'clip_global_norm': placeholder(float),  # Gradient clipping; None: none.
    # Decay per step of a moving average of the parameters, such as 0.9998; the
    # average is then evaluated and used for detection. None: no average.
    'ema_decay': placeholder(float),
  }


def _training():
  """Fields of TrainingOptions."""
  return {
    'num_steps': 360_000,  # Last step, counted from the start of the run.
    # Length in epochs of the records, instead of num_steps; None: not.
    'num_epochs': placeholder(float),
    'seed': 0,  # Random seed of initial parameters and sampling.
    'log_every_steps': 20,  # Steps between lines of metrics.
    'checkpoint_every_steps': 2500,  # Steps between checkpoints; the end too.
    'keep_checkpoints': 3,  # Number of newest checkpoints to keep.
    # Metric like eval/mask_AP whose best checkpoint is kept too; None: none.
    'keep_best': placeholder(str),
    # Evaluations in a row without a better keep_best that end the run; None:
    # no early stopping.
    'patience': placeholder(int),
    # Hours of training per checkpoint that is kept for good; None: none.
    'keep_every_hours': placeholder(float),
    'pictures': 8,  # Images per evaluation drawn with their detections.
    # Weights to start from: a .pth, .pkl, .npz or .safetensors, the prefix of a
    # TensorFlow checkpoint, or a checkpoint of ours; '' for random values.
    'pretrained': _GOOGLE_BACKBONE,
    # Fine-tuning: the model is that of the pretrained weights, and layers of
    # other classes start from random values.
    'finetune': False,
    # Whether classes of the evaluation may have no object to train on.
    'allow_empty_classes': False,
    # Steps between TensorBoard scalars with Habana's names; None: none.
    'summary_every_steps': placeholder(int),
    'log_file': placeholder(str),  # JSON lines with a summary; None: none.
    # First and last step of a trace for TensorBoard's profiler; None: no trace.
    'profile': placeholder(tuple),
    'max_bad_steps': 5,  # Consecutive non-finite steps before a rewind.
  }


def _evaluation():
  """Fields of EvaluationOptions."""
  return {
    # Record files, or a TFDS directory with its split.
    'file_pattern': 'local/coco/val*.tfrecord',
    # Ground truth for pycocotools; '' makes it from the records.
    'annotations_file': 'local/coco/annotations/instances_val2017.json',
    # (height, width) of detection; None: canvases and sizes of the input.
    'canvases': placeholder(tuple),
    'fit_size': placeholder(tuple),  # (shorter, longer) side to fit into then.
    'batch_size': 4,  # Images per step over all devices and hosts.
    'max_images': placeholder(int),  # First images to evaluate; None: all.
    # Steps between evaluations of train_and_eval; 0: only at the end.
    'every_steps': 29_568,
    # The same in epochs of the training records, instead; None: not.
    'every_epochs': placeholder(float),
    'skip_first': 0,  # Number of these evaluations to skip, the first ones.
    'report_every_batches': 0,  # Batches between partial scores; 0: none.
    'losses': False,  # Validation losses, in a second pass over the images.
    'min_picture_score': 0.5,  # Smallest score of a drawn detection.
    'min_confusion_score': 0.5,  # Smallest score in the confusion table.
    # Largest number of classes whose table is printed; eval/classes-STEP.md
    # always has it.
    'show_classes': 10,
    'max_detections': 100,  # Scored detections per image and class, as COCO.
    # Scorer: pycocotools, or hotcoco for the same numbers, faster.
    'scorer': 'pycocotools',
    # Processes that encode masks and score; 0: none; None: one per core, up to
    # 8, and none for a small set.
    'num_processes': placeholder(int),
  }


def _runtime():
  """Devices and processes."""
  return {
    'backend': 'auto',  # Backend: auto, cpu, gpu, tpu or hpu.
    # Folder of compiled programs, for a faster next start; '' for none.
    'compilation_cache': '~/.cache/maskrcnn_jax/xla',
    # Library of a PJRT plugin for hpu; None: an installed one.
    'plugin_path': placeholder(str),
    # HOST:PORT of process 0; None: found under mpirun and srun.
    'coordinator_address': placeholder(str),
    'num_processes': placeholder(int),  # Processes; None: by the launcher.
    'process_id': placeholder(int),  # Number from 0; process 0 writes files.
    'heartbeat_seconds': 100,  # Silence of a process that aborts the others.
    'watchdog_seconds': 1800,  # Time without progress that aborts; 0: never.
    'num_devices': placeholder(int),  # Number of devices to use; None: all.
    'spatial': 1,  # Number of devices that split the height of an image.
    # Sharded state: none, optimizer, or all (the parameters too).
    'shard_state': 'none',
    'deterministic': False,  # Bit-identical runs on a GPU, somewhat slower.
  }


def _habana(config, devices=1, batch_size=4, dtype='float32'):
  """Habana's recipes, all of 12.17 epochs of 118287 images.

  Args:
    config: the recipe of one device and 4 images; keeps its warm-up.
    devices: number of devices.
    batch_size: images per device, 4 or 12.
    dtype: of the model.
  """
  steps = 360_000 * 4 // (devices * batch_size)
  config.model.dtype = dtype
  config.input.batch_size = devices * batch_size
  config.evaluation.batch_size = 4 * devices
  config.optimizer.tuned_batch_size = devices * batch_size
  config.optimizer.learning_rate = 0.005 * devices * batch_size / 4
  # Two thirds and eight ninths of the steps, rounded up.
  config.optimizer.decay_steps = (-(-steps * 2 // 3), -(-steps * 8 // 9))
  config.training.num_steps = steps
  config.evaluation.every_steps = 29_568 * 4 // (devices * batch_size)


def _nvidia_1x(config):
  """NVIDIA's TF2 system: 8 devices with 4 images each, 12 epochs."""
  # TensorFlow's padding, and Keras' constants of batch norm.
  config.model.backbone.padding = 'same'
  config.model.backbone.norm_epsilon = 1e-5
  config.model.backbone.norm_momentum = 0.9
  config.training.pretrained = _NVIDIA_BACKBONE
  # Boundaries at 0.3, 8 and 10 epochs, counted in steps of the global batch.
  config.input.batch_size = 32
  config.optimizer.tuned_batch_size = 32
  config.optimizer.learning_rate = 0.04
  config.optimizer.warmup_steps = 1108
  config.optimizer.decay_steps = (29_571, 36_964)
  config.optimizer.inclusive_decay = False
  config.optimizer.rate_in_momentum = True
  config.optimizer.bias_gradient_factor = 1.0
  config.training.num_steps = 44_352
  config.evaluation.every_steps = 3696
  config.evaluation.batch_size = 8


def _torchvision(config):
  """maskrcnn_resnet50_fpn as its reference script trained it."""
  model = config.model
  model.backbone.norm_epsilon = 1e-5
  model.backbone.norm_momentum = 0.9
  model.backbone.pool_padding = 'symmetric'
  # Ratios 0.5, 1 and 2 of height to width.
  root = 2.0**0.5
  model.anchors.aspect_ratios = ((root, 1 / root), (1.0, 1.0), (1 / root, root))
  model.anchors.rounded = True
  model.anchors.centered = False
  model.anchors.fitted_strides = True
  model.train_proposals.post_nms_top_k = 2000
  model.train_proposals.min_size = 1e-3
  model.test_proposals.min_size = 1e-3
  model.rpn_targets.matching.low_quality_matches = 'all'
  model.sampling.matching.positive_strict = False
  model.sampling.fill_up = False
  model.roi_align.samples_per_bin = 2
  model.roi_align.max_level = 5
  model.roi_align.level_epsilon = 1e-6
  model.roi_align.min_side = 1.0
  model.roi_align.zero_outside = True
  model.detections.score_threshold = 0.05
  model.detections.min_size = 1e-2
  model.losses.rpn_normalizer = 'sampled'
  model.losses.box_normalizer = 'rois'
  model.losses.box_delta = 1 / 9
  model.losses.smooth_l1 = True
  model.plus_one = False
  model.mask_threshold = None
  # 800 x 1333 padded to multiples of 32, landscape and portrait.
  config.input.canvases = ((800, 1344), (1344, 800))
  config.input.resize.fit_size = (800, 1333)
  config.input.accurate_jpeg = True
  config.input.resize.exact_sizes = True
  config.input.resize.half_pixel_masks = False
  config.training.pretrained = ''
  # 26 epochs of 117266 images with objects, 8 devices with 2 images each.
  config.input.batch_size = 16
  config.optimizer.tuned_batch_size = 16
  config.optimizer.learning_rate = 0.02
  config.optimizer.warmup_learning_rate = 2e-5
  config.optimizer.decay_steps = (16 * 7329, 22 * 7329)
  config.optimizer.inclusive_decay = False
  config.optimizer.bias_gradient_factor = 1.0
  config.training.num_steps = 26 * 7329
  config.evaluation.every_steps = 7329


def _torchvision_v2(config):
  """maskrcnn_resnet50_fpn_v2: deeper heads and trained batch norm."""
  _torchvision(config)
  config.model.backbone.norm = 'batch'
  config.model.backbone.frozen_stages = 0
  config.model.rpn_convs = 2
  config.model.box_convs = 4
  config.model.box_dense = 1
  config.model.head_norm.kind = 'batch'


def _detectron2(config):
  """Mask R-CNN of Detectron2's model zoo, ResNet-50 and 3x by default."""
  _torchvision(config)
  model = config.model
  model.backbone.stride_in_1x1 = True
  # Detectron2 divides groups further than 4 channels.
  model.backbone.group_channels = 1
  model.bgr = True
  # Detectron2 only subtracts the mean, from 0..255.
  model.pixel_std = (1 / 255, 1 / 255, 1 / 255)
  model.anchors.rounded = False
  model.anchors.fitted_strides = False
  model.train_proposals.post_nms_top_k = 1000
  # Boxes without area are dropped.
  model.train_proposals.min_size = 1e-9
  model.test_proposals.min_size = 1e-9
  model.detections.min_size = 0.0
  model.detections.mask_pasting = 'continuous'
  model.roi_align.half_pixel = True
  model.roi_align.min_side = 0.0
  model.roi_align.adaptive_side = 35
  model.roi_align.level_epsilon = 0.0
  model.losses.rpn_normalizer = 'images'
  # L1 losses.
  model.losses.rpn_delta = 0.0
  model.losses.box_delta = 0.0
  model.mask_threshold = 0.5
  # 270000 steps of 16 images.
  config.optimizer.warmup_steps = 1000
  config.optimizer.decay_steps = (210_000, 250_000)
  config.training.num_steps = 270_000


def _convnext_tiny(config):
  """A ConvNeXt-T with the heads of Detectron2, which are MMDetection's too."""
  _detectron2(config)
  config.model.backbone.kind = 'convnext'
  config.model.bgr = False
  config.model.pixel_std = (0.229, 0.224, 0.225)
  config.training.pretrained = 'torchvision/convnext_tiny_imagenet1k_v1'


def _vitdet_b(config):
  """Mask R-CNN of ViTDet with a ViT-B, from masked autoencoders."""
  _detectron2(config)
  model = config.model
  model.backbone.kind = 'vit'
  model.bgr = False
  model.pixel_std = (0.229, 0.224, 0.225)
  model.rpn_convs = 2
  model.box_convs = 4
  model.box_dense = 1
  model.head_norm.kind = 'layer'
  model.head_norm.epsilon = 1e-6
  config.input.canvases = ((1024, 1024),)
  config.input.resize.fit_size = placeholder(tuple)
  config.training.pretrained = 'mae/mae_pretrain_vit_base'


def _vitdet_l(config):
  """The same with a ViT-L."""
  _vitdet_b(config)
  vit = config.model.backbone.vit
  vit.width = 1024
  vit.depth = 24
  vit.heads = 16
  vit.global_blocks = (5, 11, 17, 23)
  config.training.pretrained = 'mae/mae_pretrain_vit_large'


def _detectron2_1x(config):
  """Detectron2's R50-FPN 1x, of 12 epochs: aims at AP 38.6 box, 35.2 mask."""
  _detectron2(config)
  config.input.augment.short_edges = (640, 672, 704, 736, 768, 800)
  config.training.pretrained = 'detectron2/ImageNetPretrained/MSRA/R-50'
  config.optimizer.decayed = 'all_but_norms'
  config.optimizer.decay_steps = (2 / 3, 8 / 9)
  config.training.num_steps = 90_000
  config.evaluation.every_steps = 15_000


def _detectron2_3x(config):
  """Detectron2's R50-FPN 3x, of 37 epochs: aims at AP 41.0 box, 37.2 mask."""
  _detectron2_1x(config)
  config.optimizer.decay_steps = (7 / 9, 25 / 27)
  config.training.num_steps = 270_000


def _mlperf(config):
  """MLPerf's Mask R-CNN with 96 images a step: aims at AP 37.7 and 33.9.

  Its references pass both after 13 to 15 epochs, see docs/recipes.md.
  """
  _torchvision(config)
  model = config.model
  # Caffe's ResNet and colours, and boxes with a side of b - a + 1.
  model.backbone.stride_in_1x1 = True
  model.bgr = True
  model.pixel_mean = (122.7717 / 255, 115.9465 / 255, 102.9801 / 255)
  model.pixel_std = (1 / 255, 1 / 255, 1 / 255)
  model.plus_one = True
  model.anchors.fitted_strides = False
  model.train_proposals.post_nms_top_k = 1000
  model.losses.box_delta = 1.0
  model.mask_threshold = 0.5
  config.training.pretrained = 'detectron2/ImageNetPretrained/MSRA/R-50'
  config.input.batch_size = 96
  config.optimizer.tuned_batch_size = 96
  config.optimizer.learning_rate = 0.12
  config.optimizer.warmup_steps = 625
  config.optimizer.warmup_learning_rate = 0.0
  config.optimizer.decay_steps = (12_000, 16_000)
  config.optimizer.bias_gradient_factor = 2.0
  # 15 epochs of 117266 images with objects.
  config.training.num_steps = 15 * 1222
  config.evaluation.every_steps = 1222


def _scale_jitter(config, tested_square=False):
  """Large-scale jitter: 0.1 to 2 times what fits into 1024x1024 pixels.

  Args:
    config: with the canvases of its test, which are kept for the evaluation.
    tested_square: it is tested at 1024x1024 too.
  """
  if not tested_square:
    config.evaluation.canvases = config.input.canvases
    config.evaluation.fit_size = config.input.resize.fit_size
  config.input.canvases = ((1024, 1024),)
  config.input.resize.fit_size = placeholder(tuple)
  config.input.augment.scale_range = (0.1, 2.0)


def _lsj_100ep(config, epochs=100):
  """Detectron2's LSJ from random values: aims at AP 44.6 box, 40.3 mask.

  It is tested at 800x1333 pixels.

  Args:
    config: changed in place.
    epochs: 100; with 400 it aims at 47.4 and 42.5.
  """
  _detectron2(config)
  _scale_jitter(config)
  config.model.backbone.norm = 'batch'
  config.model.backbone.frozen_stages = 0
  config.model.rpn_convs = 2
  config.model.box_convs = 4
  config.model.box_dense = 1
  config.model.head_norm.kind = 'batch'
  config.input.batch_size = 64
  config.optimizer.tuned_batch_size = 64
  config.optimizer.learning_rate = 0.1
  config.optimizer.warmup_steps = 500
  config.optimizer.warmup_learning_rate = 0.0067
  config.optimizer.decay_steps = (8 / 9, 26 / 27)
  config.optimizer.weight_decay = 4e-5
  config.optimizer.decayed = 'all_but_norms'
  config.training.num_steps = 184_375 * epochs // 100
  config.evaluation.every_steps = 20_000


def _torchvision_v2_400ep(config):
  """maskrcnn_resnet50_fpn_v2 from random values: aims at AP 47.4 and 41.8.

  It is tested at 800x1333 pixels.
  """
  _torchvision_v2(config)
  _scale_jitter(config)
  config.input.batch_size = 64
  config.optimizer.tuned_batch_size = 64
  config.optimizer.learning_rate = 0.1
  config.optimizer.warmup_learning_rate = 1e-4
  config.optimizer.decay_steps = (0.88, 0.96)
  config.optimizer.weight_decay = 4e-5
  config.optimizer.decayed = 'all'
  # 32 devices with 2 images each.
  config.training.num_steps = 400 * 1833
  config.evaluation.every_steps = 10 * 1833


def _copy_paste(config):
  """Google's copy-paste, 584 epochs: aims at AP 48.3 box, 42.4 mask.

  The numerics are torchvision's, and the region proposal head has no norm.
  """
  _torchvision_v2_400ep(config)
  config.evaluation.canvases = placeholder(tuple)
  config.evaluation.fit_size = placeholder(tuple)
  config.model.box_dense = 2
  config.model.backbone.norm_epsilon = 1e-4
  config.model.backbone.norm_momentum = 0.997
  config.model.head_norm.epsilon = 1e-4
  config.model.head_norm.momentum = 0.997
  config.model.dtype = 'bfloat16'
  config.input.augment.copy_paste = 1.0
  config.input.batch_size = 256
  config.optimizer.tuned_batch_size = 256
  config.optimizer.learning_rate = 0.32
  config.optimizer.warmup_learning_rate = 0.0032
  config.optimizer.decay_steps = (0.9, 0.95, 0.975)
  config.optimizer.decay_factors = (0.1, 0.01, 0.001)
  config.optimizer.decayed = 'kernels'
  config.training.num_steps = 270_000
  config.evaluation.every_steps = 9_000


def _convnext_tiny_3x(config):
  """ConvNeXt-T, 36 epochs: aims at AP 46.2 box, 41.7 mask."""
  _convnext_tiny(config)
  config.model.backbone.convnext.drop_path = 0.4
  config.input.augment.short_edges = tuple(range(480, 801, 32))
  config.input.augment.crop_short_edges = (400, 500, 600)
  config.training.pretrained = 'convnext/convnext_tiny_1k_224'
  config.optimizer.kind = 'adamw'
  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_learning_rate = 1e-7
  config.optimizer.weight_decay = 0.05
  config.optimizer.layer_decay = 0.95
  config.optimizer.decay_steps = (27 / 36, 33 / 36)
  # 117266 images with objects.
  config.training.num_steps = 36 * 7330
  config.evaluation.every_steps = 3 * 7330


def _vitdet_b_100ep(config, model=_vitdet_b):
  """ViTDet with a ViT-B, 100 epochs: aims at AP 51.6 box, 45.9 mask."""
  model(config)
  _scale_jitter(config, tested_square=True)
  config.model.backbone.vit.drop_path = 0.1
  config.input.batch_size = 64
  config.optimizer.tuned_batch_size = 64
  config.optimizer.kind = 'adamw'
  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_steps = 250
  config.optimizer.warmup_learning_rate = 1e-7
  config.optimizer.decay_steps = (8 / 9, 26 / 27)
  config.optimizer.weight_decay = 0.1
  config.optimizer.decayed = 'all_but_backbone_norms'
  config.optimizer.layer_decay = 0.7
  config.training.num_steps = 184_375
  config.evaluation.every_steps = 20_000


def _vitdet_l_100ep(config):
  """ViTDet with a ViT-L, 100 epochs: aims at AP 55.5 box, 49.2 mask."""
  _vitdet_b_100ep(config, _vitdet_l)
  config.model.backbone.vit.drop_path = 0.4
  config.optimizer.layer_decay = 0.8


def _from_scratch(config):
  """Habana's recipe without pretrained weights."""
  # Group norm needs no statistics, so it trains from random values and with
  # two images per batch.
  config.model.backbone.norm = 'group'
  config.model.backbone.norm_epsilon = 1e-5
  config.model.backbone.frozen_stages = 0
  config.training.pretrained = ''


def _finetune(config):
  """Other classes in thousands of steps, from weights of a Mask R-CNN.

  Layers, anchors, box coding, RoIAlign and colours become those of the weights,
  see `training/finetuning.py`.
  """
  # Counted in the records, plus the background.
  config.model.num_classes = placeholder(int)
  # The threshold of published models; a lower one only lowers the precision.
  config.model.detections.score_threshold = 0.05
  # Portrait images too.
  config.input.canvases = ((832, 1344), (1344, 832))
  config.input.accurate_jpeg = True  # What the weights were trained on.
  config.input.file_pattern = 'local/own/train*.tfrecord'
  config.evaluation.file_pattern = 'local/own/val*.tfrecord'
  config.evaluation.annotations_file = ''
  config.evaluation.every_steps = 500
  # By name: downloaded once, see `maskrcnn-jax weights`.
  config.training.pretrained = 'torchvision/maskrcnn_resnet50_fpn_v2_coco'
  config.training.finetune = True
  config.training.num_steps = 3000
  config.training.checkpoint_every_steps = 500
  config.optimizer.warmup_steps = 200
  config.optimizer.decay_steps = (2 / 3, 0.9)
  # New heads on old features: the first gradients are large.
  config.optimizer.clip_global_norm = 5.0


def _overfit(config):
  """Overfits eight images, from random values."""
  _from_scratch(config)
  # Half the channels of the pyramid and its heads, a quarter of their work.
  config.model.pyramid_channels = 128
  config.model.mask_channels = 128
  # Images have at most eight objects: a tenth of the RoIs is enough.
  config.model.train_proposals.pre_nms_top_k = 500
  config.model.train_proposals.post_nms_top_k = 200
  config.model.test_proposals.pre_nms_top_k = 500
  config.model.test_proposals.post_nms_top_k = 200
  config.model.sampling.num_rois = 64
  config.model.sampling.fill_up = False
  # A tenth of the pixels.
  config.input.canvases = ((320, 320),)
  config.input.batch_size = 2
  config.optimizer.tuned_batch_size = 2
  config.input.max_instances = 16
  config.input.file_pattern = 'local/overfit/train*.tfrecord'
  config.input.flip = False
  config.optimizer.learning_rate = 0.02
  config.optimizer.warmup_steps = 100
  config.optimizer.decay_steps = (550, 650)
  config.optimizer.clip_global_norm = 5.0
  config.training.num_steps = 700
  config.training.checkpoint_every_steps = 100
  config.evaluation.file_pattern = 'local/overfit/train*.tfrecord'
  config.evaluation.annotations_file = 'local/overfit/instances.json'
  config.evaluation.every_steps = 0


VARIANTS = {
  'habana_1x': _habana,
  'habana_1x_batch12': functools.partial(_habana, batch_size=12),
  'habana_8x': functools.partial(_habana, devices=8),
  'habana_8x_batch12': functools.partial(_habana, devices=8, batch_size=12),
  'nvidia_1x': _nvidia_1x,
  'torchvision': _torchvision,
  'torchvision_v2': _torchvision_v2,
  'torchvision_v2_400ep': _torchvision_v2_400ep,
  'detectron2': _detectron2,
  'detectron2_1x': _detectron2_1x,
  'detectron2_3x': _detectron2_3x,
  'mlperf': _mlperf,
  'lsj_100ep': _lsj_100ep,
  'lsj_400ep': functools.partial(_lsj_100ep, epochs=400),
  'copy_paste': _copy_paste,
  'convnext_tiny': _convnext_tiny,
  'vitdet_b': _vitdet_b,
  'vitdet_l': _vitdet_l,
  'vitdet_b_100ep': _vitdet_b_100ep,
  'vitdet_l_100ep': _vitdet_l_100ep,
  'convnext_tiny_3x': _convnext_tiny_3x,
  'from_scratch': _from_scratch,
  'finetune': _finetune,
  'overfit': _overfit,
}
VARIANTS |= {
  f'{name}_bf16': functools.partial(recipe, dtype='bfloat16')
  for name, recipe in VARIANTS.items()
  if name.startswith('habana_')
}
