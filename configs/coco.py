"""Mask R-CNN with ResNet-50 and a feature pyramid on COCO.

Variants, as in `--config=coco:nvidia_1x`:
  habana_1x: Habana's recipe for one device, the default.
  habana_1x_batch12: the same with 12 images a step.
  habana_8x, habana_8x_batch12: the same for eight devices.
  NAME_bf16 of each of these: in bfloat16, as Habana recommends.
  nvidia_1x: NVIDIA's system, from which Habana's descends; eight devices.
  torchvision: maskrcnn_resnet50_fpn, 26 epochs on eight devices.
  torchvision_v2: maskrcnn_resnet50_fpn_v2; its long training is not here.
  detectron2: Detectron2's R50-FPN, 3x; R101-FPN with model.backbone.depth=101.
  from_scratch: Habana's recipe without pretrained weights, with group norm.
  finetune: other classes, from weights of a Mask R-CNN; docs/finetuning.md.
  overfit: a handful of images learnt by heart on a CPU.
"""

import functools

import ml_collections

# Where data/download_pretrained_weights.sh puts them.
_GOOGLE_BACKBONE = 'weights/resnet/resnet-nhwc-2018-02-07/model.ckpt-112603'
_NVIDIA_BACKBONE = 'weights/rn50_tf_amp_ckpt_v20.06.0/nvidia_rn50_tf_amp'


def get_config(variant='habana_1x'):
  """The config of a variant; every field can be set on the command line."""
  config = ml_collections.ConfigDict()

  # The network: fields of MaskRCNN.
  config.model = model = ml_collections.ConfigDict()
  # Classes with background, class 0; COCO's ids are 1 to 90, ten are unused.
  model.num_classes = 91
  # Fields of ResNet.
  model.backbone = backbone = ml_collections.ConfigDict()
  # Layers: 18, 34, 50 or 101.
  backbone.depth = 50
  # Channels of the stem.
  backbone.width = 64
  # frozen, batch or group.
  backbone.norm = 'frozen'
  # Added to the variance.
  backbone.norm_epsilon = 1e-4
  # Share of the old statistics that stays; trainable batch norm only.
  backbone.norm_momentum = 0.997
  # Fewest channels of a group of group norm.
  backbone.group_channels = 4
  # Bottlenecks have their stride on the first 1x1, not on the 3x3.
  backbone.stride_in_1x1 = False
  # Of strided convolutions: symmetric, or same as TensorFlow pads.
  backbone.padding = 'symmetric'
  # Of the max-pool after the stem.
  backbone.pool_padding = 'same'
  # How many of (stem, stage 2, stage 3, ...) are not trained.
  backbone.frozen_stages = 2
  # Channels of every pyramid level.
  model.pyramid_channels = 256
  # Coarsest level; the finest is 2.
  model.max_level = 6
  # 3x3 convolutions of the region proposal head.
  model.rpn_convs = 1
  # 3x3 convolutions of the box head.
  model.box_convs = 0
  # Dense layers of the box head.
  model.box_dense = 2
  # Width of these dense layers.
  model.box_channels = 1024
  # Width of the mask head.
  model.mask_channels = 256
  # 3x3 convolutions of the mask head.
  model.mask_convs = 4
  # Fields of NormOptions, in the pyramid, the box head and the mask head.
  model.head_norm = head_norm = ml_collections.ConfigDict()
  # none, frozen, batch or group.
  head_norm.kind = 'none'
  # Added to the variance.
  head_norm.epsilon = 1e-5
  # Share of the old statistics that stays.
  head_norm.momentum = 0.9
  # Side of RoI features for boxes.
  model.box_size = 7
  # Side of RoI features for masks; masks have twice that.
  model.mask_size = 14
  # Fields of AnchorOptions.
  model.anchors = anchors = ml_collections.ConfigDict()
  # Side of an anchor in cells of its level.
  anchors.scale = 8.0
  # Anchor sizes of a level, spread over one octave.
  anchors.scales_per_octave = 1
  # (width, height) multipliers of the side of an anchor.
  anchors.aspect_ratios = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))
  # Round the corners of the anchors.
  anchors.rounded = False
  # First centre in the middle of the first cell, not at its corner.
  anchors.centered = True
  # Stride is canvas // feature size, not a power of two.
  anchors.fitted_strides = False
  # Fields of ProposalOptions, in training.
  model.train_proposals = proposals = ml_collections.ConfigDict()
  # Anchors per level that enter NMS, by score.
  proposals.pre_nms_top_k = 2000
  # Proposals per image.
  proposals.post_nms_top_k = 1000
  # Overlap that NMS bears.
  proposals.iou_threshold = 0.7
  # Shorter sides are dropped; 0 keeps all.
  proposals.min_size = 0.0
  # The same, in detection.
  model.test_proposals = ml_collections.ConfigDict(
    {**proposals.to_dict(), 'pre_nms_top_k': 1000}
  )
  # Fields of RPNTargetOptions.
  model.rpn_targets = rpn = ml_collections.ConfigDict()
  # Fields of MatchingOptions, anchors to instances.
  rpn.matching = matching = ml_collections.ConfigDict()
  # IoU from which an anchor is positive.
  matching.positive_iou = 0.7
  # IoU below which an anchor is negative.
  matching.negative_iou = 0.3
  # The positive IoU itself does not suffice.
  matching.positive_strict = False
  # Low-quality matches: none, one anchor per instance, or all of the best.
  matching.low_quality_matches = 'one'
  # Anchors per image that objectness learns from.
  rpn.num_samples = 256
  # Largest share of positives among them.
  rpn.positive_fraction = 0.5
  # Fields of SamplingOptions.
  model.sampling = sampling = ml_collections.ConfigDict()
  # Fields of MatchingOptions, proposals to instances.
  sampling.matching = matching = ml_collections.ConfigDict()
  # IoU from which a RoI is foreground.
  matching.positive_iou = 0.5
  # IoU below which a RoI is background.
  matching.negative_iou = 0.5
  # The positive IoU itself does not suffice.
  matching.positive_strict = True
  # No RoI below the threshold is foreground.
  matching.low_quality_matches = 'none'
  # More foreground where background is scarce, instead of fewer RoIs.
  sampling.fill_up = True
  # RoIs per image that the heads learn from.
  sampling.num_rois = 512
  # Largest share of foreground among them.
  sampling.foreground_fraction = 0.25
  # Foreground RoIs per image that the mask head learns from; None: all.
  sampling.num_mask_rois = ml_collections.config_dict.placeholder(int)
  # Fields of RoiAlignOptions.
  model.roi_align = roi_align = ml_collections.ConfigDict()
  # Samples per bin and axis.
  roi_align.samples_per_bin = 1
  # Shift by half a pixel, as aligned=True does elsewhere.
  roi_align.half_pixel = False
  # Finest level that RoIs are taken from.
  roi_align.min_level = 2
  # Coarsest level that RoIs are taken from.
  roi_align.max_level = 6
  # Added before the level is rounded down.
  roi_align.level_epsilon = 0.0
  # Smallest side of a RoI, in cells.
  roi_align.min_side = 0.0
  # Samples beyond the map are 0, not the border.
  roi_align.zero_outside = False
  # Type that RoI features are resampled in; None: as they come.
  roi_align.dtype = ml_collections.config_dict.placeholder(str)
  # Fields of DetectionOptions.
  model.detections = detections = ml_collections.ConfigDict()
  # Per image.
  detections.max_detections = 100
  # A score must be larger.
  detections.score_threshold = 0.0
  # Overlap that NMS within a class bears.
  detections.iou_threshold = 0.5
  # Shorter sides are dropped; 0 keeps all.
  detections.min_size = 0.0
  # Fields of LossOptions.
  model.losses = losses = ml_collections.ConfigDict()
  # RPN terms: mean per level (levels), or over sampled anchors (sampled).
  losses.rpn_normalizer = 'levels'
  # Anchors that a level's objectness is divided by; rpn_targets.num_samples.
  losses.rpn_samples = 256
  # Where the Huber loss of the RPN turns linear.
  losses.rpn_delta = 1 / 9
  # Box term: mean over foreground coordinates, or sum over number of all rois.
  losses.box_normalizer = 'foreground'
  # Where the Huber loss of the box head turns linear.
  losses.box_delta = 1.0
  # Huber losses are divided by their delta.
  losses.smooth_l1 = False
  # A box from a to b has the side b - a + 1 where deltas are coded.
  model.plus_one = True
  # Weights of the box head's (dy, dx, dh, dw).
  model.box_weights = (10.0, 10.0, 5.0, 5.0)
  # Of mask targets; None leaves them soft.
  model.mask_threshold = 0.5
  # Of RGB in 0..1, subtracted; ImageNet's.
  model.pixel_mean = (0.485, 0.456, 0.406)
  # Of RGB in 0..1, divided by; ImageNet's.
  model.pixel_std = (0.229, 0.224, 0.225)
  # The backbone takes blue, green, red; images are RGB nevertheless.
  model.bgr = False
  # Of convolutions and dense layers: float32, bfloat16, or bfloat16_products.
  model.dtype = 'float32'

  # Training data: arguments of train_batches.
  config.input = inputs = ml_collections.ConfigDict()
  # Record files, or a TFDS directory with its split, as in DIR:train.
  inputs.file_pattern = 'local/coco/train*.tfrecord'
  # (height, width) of the input; an image takes the one that shrinks it least.
  inputs.canvases = ((832, 1344),)
  # Images per step over all devices and hosts.
  inputs.batch_size = 4
  # Objects per image; of more the largest are kept.
  inputs.max_instances = 100
  # Side of the mask of an instance.
  inputs.mask_size = 112
  # Mirror half of the images.
  inputs.flip = True
  # Of order and augmentation.
  inputs.seed = 0
  # uint8 (rounded) or float32.
  inputs.image_dtype = 'uint8'
  # Threads that read; None: one per CPU, at most 16.
  inputs.num_threads = ml_collections.config_dict.placeholder(int)
  # Kept in memory: rows, records, or nothing; None: what there is plenty for.
  inputs.cache = ml_collections.config_dict.placeholder(str)
  # The first batch for ever, to measure training without reading.
  inputs.repeat_first = False
  # Share of rows without image, or without all objects, that stops the run.
  inputs.max_unreadable_share = 0.05
  # Fields of ResizeOptions.
  inputs.resize = resize = ml_collections.ConfigDict()
  # (shorter, longer) sides to fit into; None: the canvas.
  resize.fit_size = ml_collections.config_dict.placeholder(tuple)
  # Sizes in double precision and a scale per axis, as torchvision.
  resize.exact_sizes = False
  # Nearest neighbours of pixel centres for masks, as TensorFlow.
  resize.half_pixel_masks = True

  # Fields of OptimizerOptions.
  config.optimizer = optimizer = ml_collections.ConfigDict()
  # After warm-up, for the whole batch.
  optimizer.learning_rate = 0.005
  # The batch that this rate is for; for another the rate grows in proportion,
  # unless it is given too. None: never.
  optimizer.tuned_batch_size = 4
  # Steps of linear warm-up.
  optimizer.warmup_steps = 1000
  # Where warm-up starts.
  optimizer.warmup_learning_rate = 0.0
  # Last steps before the rate falls.
  optimizer.decay_steps = (240_000, 320_000)
  # Of the rate, after each of those.
  optimizer.decay_factors = (0.1, 0.01)
  # The rate falls after those steps, not at them.
  optimizer.inclusive_decay = True
  # Of SGD.
  optimizer.momentum = 0.9
  # Times half the squared kernels, part of the loss.
  optimizer.weight_decay = 1e-4
  # Gradients of biases are multiplied by it (Detectron's doubled rate).
  optimizer.bias_gradient_factor = 2.0
  # The rate is multiplied in before the momentum, as Keras does.
  optimizer.rate_in_momentum = False
  # Gradients are scaled down to this norm; None: never.
  optimizer.clip_global_norm = ml_collections.config_dict.placeholder(float)
  # Share of a moving average of the parameters that stays in a step, such as
  # 0.9998; the average is what is evaluated and detects. None: there is none.
  optimizer.ema_decay = ml_collections.config_dict.placeholder(float)

  # Fields of TrainingOptions.
  config.training = training = ml_collections.ConfigDict()
  # Last step, counted from the start of the run.
  training.num_steps = 360_000
  # Of initial parameters and sampling.
  training.seed = 0
  # Metrics are written this often.
  training.log_every_steps = 20
  # Checkpoints are written this often, and at the end.
  training.checkpoint_every_steps = 2500
  # How many of them stay, the newest.
  training.keep_checkpoints = 3
  # The best by a number like 'eval/mask_AP' stays too; None: no.
  training.keep_best = ml_collections.config_dict.placeholder(str)
  # So many evaluations that do not improve keep_best end the run; None: no.
  training.patience = ml_collections.config_dict.placeholder(int)
  # One in so many hours of training stays too; None: no.
  training.keep_every_hours = ml_collections.config_dict.placeholder(float)
  # Images of an evaluation that are drawn with their detections.
  training.pictures = 8
  # Weights to start from: a .pth, .pkl, .npz or .safetensors, the prefix of a
  # TensorFlow checkpoint, or a checkpoint of ours; '' for random values.
  training.pretrained = _GOOGLE_BACKBONE
  # Of those weights, what does not fit other classes starts anew; the model is
  # as they need it.
  training.finetune = False
  # TensorBoard scalars under the seed's names, this often; None: not.
  training.summary_every_steps = ml_collections.config_dict.placeholder(int)
  # JSON lines that sum up the run; None: none.
  training.log_file = ml_collections.config_dict.placeholder(str)
  # First and last step to trace for TensorBoard's profiler; None: no trace.
  training.profile = ml_collections.config_dict.placeholder(tuple)
  # So many steps in a row that are not finite make the run go back.
  training.max_bad_steps = 5

  # Fields of EvaluationOptions; canvases and resizing are those of the input.
  config.evaluation = evaluation = ml_collections.ConfigDict()
  # Record files, or a TFDS directory with its split.
  evaluation.file_pattern = 'local/coco/val*.tfrecord'
  # Ground truth for pycocotools; '' makes it of the records.
  evaluation.annotations_file = 'local/coco/annotations/instances_val2017.json'
  # Images per step over all devices and hosts.
  evaluation.batch_size = 4
  # Evaluate only the first so many; None: all.
  evaluation.max_images = ml_collections.config_dict.placeholder(int)
  # How often train_and_eval evaluates besides at the end; 0: not at all.
  evaluation.every_steps = 29_568
  # How many of these evaluations are left out, the first ones.
  evaluation.skip_first = 0
  # Score what is there after so many batches; 0: only at the end.
  evaluation.report_every_batches = 0
  # Also the losses of training on these images, in another pass over them.
  evaluation.losses = False
  # Detections below are not drawn.
  evaluation.min_picture_score = 0.5
  # Detections below do not count in the table of confusions.
  evaluation.min_confusion_score = 0.5
  # AP by class and confusions are printed for at most so many classes; the file
  # eval/classes-STEP.md always has them.
  evaluation.show_classes = 10
  # Of an image and class that count, the best ones: COCO's number.
  evaluation.max_detections = 100
  # pycocotools, or hotcoco: the same numbers, faster, if it is installed.
  evaluation.scorer = 'pycocotools'
  # Processes that encode masks and score; 0: none; None: one per core, up to 8,
  # unless the set is small.
  evaluation.num_processes = ml_collections.config_dict.placeholder(int)

  # What the run computes on.
  config.runtime = runtime = ml_collections.ConfigDict()
  # auto, cpu, gpu, tpu or hpu; auto takes what there is.
  runtime.backend = 'auto'
  # Folder of compiled programs, for a faster next start; '' for none.
  runtime.compilation_cache = '~/.cache/maskrcnn_jax/xla'
  # Library of a PJRT plugin for hpu; None: one that is installed.
  runtime.plugin_path = ml_collections.config_dict.placeholder(str)
  # HOST:PORT of process 0; None finds it under mpirun and srun.
  runtime.coordinator_address = ml_collections.config_dict.placeholder(str)
  # Processes of the job and number of this one, where no launcher says them.
  runtime.num_processes = ml_collections.config_dict.placeholder(int)
  # From 0; process 0 prints and writes.
  runtime.process_id = ml_collections.config_dict.placeholder(int)
  # A process that is silent for so long ends the others.
  runtime.heartbeat_seconds = 100
  # A job without progress for so long ends and says where it stood; 0: never.
  runtime.watchdog_seconds = 1800
  # Take the first few devices only; None: all.
  runtime.num_devices = ml_collections.config_dict.placeholder(int)
  # Devices that share an image, each with a part of its height.
  runtime.spatial = 1
  # What each device holds only a part of: none, optimizer (its state), or all
  # (the parameters too).
  runtime.shard_state = 'none'
  # The same bits on a GPU in every run, somewhat slower; a CPU gives them.
  runtime.deterministic = False

  VARIANTS[variant](config)
  return config


def _habana(config, devices=1, batch_size=4, dtype='float32'):
  """Habana's recipes, all of them 12.17 epochs of 118287 images.

  Args:
    config: of one device and 4 images; its warm-up stays as it is.
    devices: that share a step.
    batch_size: of each of them, 4 or 12.
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
  # Convolutions pad like TensorFlow; batch norm has Keras' constants.
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
  # 800 x 1333 padded to multiples of 32, upright or not.
  config.input.canvases = ((800, 1344), (1344, 800))
  config.input.resize.fit_size = (800, 1333)
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
  """maskrcnn_resnet50_fpn_v2: another network, with a norm that learns."""
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
  # Of 0..255 there only the mean is subtracted.
  model.pixel_std = (1 / 255, 1 / 255, 1 / 255)
  model.anchors.rounded = False
  model.anchors.fitted_strides = False
  model.train_proposals.post_nms_top_k = 1000
  # Boxes without area are dropped.
  model.train_proposals.min_size = 1e-9
  model.test_proposals.min_size = 1e-9
  model.detections.min_size = 0.0
  model.roi_align.half_pixel = True
  model.roi_align.min_side = 0.0
  # Adaptive there, see docs/weights.md.
  model.roi_align.samples_per_bin = 2
  model.roi_align.level_epsilon = 0.0
  # L1 losses, as far as a smooth one can be.
  model.losses.rpn_delta = 1e-3
  model.losses.box_delta = 1e-3
  model.mask_threshold = 0.5
  # 270000 steps of 16 images.
  config.optimizer.warmup_steps = 1000
  config.optimizer.decay_steps = (210_000, 250_000)
  config.training.num_steps = 270_000


def _from_scratch(config):
  """For data or devices without the pretrained weights at hand."""
  # Group norm needs no statistics, so it trains from any initial values and
  # two images make a batch.
  config.model.backbone.norm = 'group'
  config.model.backbone.norm_epsilon = 1e-5
  config.model.backbone.frozen_stages = 0
  config.training.pretrained = ''


def _finetune(config):
  """Other classes in thousands of steps, from weights of a Mask R-CNN.

  The layers, anchors, box coding, RoIAlign and colours become those of the
  weights, see `training/finetuning.py`.
  """
  # As many as the records have, and the background.
  config.model.num_classes = ml_collections.config_dict.placeholder(int)
  # What published models show: less would only lower the precision.
  config.model.detections.score_threshold = 0.05
  # Upright images, too.
  config.input.canvases = ((832, 1344), (1344, 832))
  config.input.file_pattern = 'local/own/train*.tfrecord'
  config.evaluation.file_pattern = 'local/own/val*.tfrecord'
  config.evaluation.annotations_file = ''
  config.evaluation.every_steps = 500
  config.training.pretrained = ''
  config.training.finetune = True
  config.training.num_steps = 3000
  config.training.checkpoint_every_steps = 500
  config.optimizer.warmup_steps = 200
  config.optimizer.decay_steps = (2000, 2700)
  # New heads on old features: the first gradients are large.
  config.optimizer.clip_global_norm = 5.0


def _overfit(config):
  """Eight images, trained from nothing until they are known by heart."""
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
  'detectron2': _detectron2,
  'from_scratch': _from_scratch,
  'finetune': _finetune,
  'overfit': _overfit,
}
VARIANTS |= {
  f'{name}_bf16': functools.partial(recipe, dtype='bfloat16')
  for name, recipe in VARIANTS.items()
  if name.startswith('habana_')
}
