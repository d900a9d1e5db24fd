"""Small Mask R-CNN on drawn shapes: minutes on two CPU cores, from nothing.

`python data/shapes/shapes.py --output local/shapes` draws the pictures.

Variants, as in `--config=shapes:finetune`:
  demo: the shapes, the default.
  finetune: other classes, from the weights of the demo; docs/finetuning.md.
  nuclei: the same for microscope images with hundreds of nuclei.
  nuclei_from_scratch: these from random values, in as many steps.
"""

import ml_collections


def get_config(variant='demo'):
  """The config of a variant; every field can be set on the command line.

  Options of the model that are not listed are those of `configs/coco.py`.
  """
  config = ml_collections.ConfigDict()

  # The network: fields of MaskRCNN.
  config.model = model = ml_collections.ConfigDict()
  # Background, disc, square, triangle, cross.
  model.num_classes = 5
  # Fields of ResNet.
  model.backbone = backbone = ml_collections.ConfigDict()
  # Layers: 18, 34, 50 or 101.
  backbone.depth = 18
  # Channels of the stem.
  backbone.width = 32
  # frozen, batch or group.
  backbone.norm = 'batch'
  # Added to the variance.
  backbone.norm_epsilon = 1e-5
  # Share of the old statistics that stays.
  backbone.norm_momentum = 0.9
  # How many of (stem, stage 2, stage 3, ...) are not trained.
  backbone.frozen_stages = 0
  # Channels of every pyramid level.
  model.pyramid_channels = 64
  # Coarsest level; the finest is 2.
  model.max_level = 5
  # Width of the two dense layers of the box head.
  model.box_channels = 256
  # Width of the mask head.
  model.mask_channels = 64
  # 3x3 convolutions of the mask head.
  model.mask_convs = 2
  # Side of the RoI features of the mask head; masks have twice that.
  model.mask_size = 10
  # Fields of AnchorOptions: anchors of 16 and 22 pixels on the finest level.
  model.anchors = anchors = ml_collections.ConfigDict()
  # Side of an anchor, in cells of its level.
  anchors.scale = 4.0
  # Sizes per level.
  anchors.scales_per_octave = 2
  # Fields of ProposalOptions, in training.
  model.train_proposals = proposals = ml_collections.ConfigDict()
  # Anchors per level that enter NMS, by score.
  proposals.pre_nms_top_k = 200
  # Proposals per image.
  proposals.post_nms_top_k = 100
  # The same, in detection.
  model.test_proposals = proposals = ml_collections.ConfigDict()
  # Anchors per level that enter NMS, by score.
  proposals.pre_nms_top_k = 200
  # Proposals per image.
  proposals.post_nms_top_k = 100
  # Fields of RPNTargetOptions.
  model.rpn_targets = rpn = ml_collections.ConfigDict()
  # Anchors per image that objectness learns from.
  rpn.num_samples = 64
  # Fields of SamplingOptions.
  model.sampling = sampling = ml_collections.ConfigDict()
  # More foreground where background is scarce, instead of fewer RoIs.
  sampling.fill_up = False
  # RoIs per image that the heads learn from.
  sampling.num_rois = 32
  # Largest share of foreground among them.
  sampling.foreground_fraction = 0.5
  # Fields of RoiAlignOptions.
  model.roi_align = roi_align = ml_collections.ConfigDict()
  # Coarsest level that RoIs are taken from.
  roi_align.max_level = 5
  # Fields of DetectionOptions.
  model.detections = detections = ml_collections.ConfigDict()
  # Per image, of at most 8 shapes.
  detections.max_detections = 20
  # A score must be larger.
  detections.score_threshold = 0.05
  # Fields of LossOptions.
  model.losses = losses = ml_collections.ConfigDict()
  # Anchors that a level's objectness is divided by; rpn_targets.num_samples.
  losses.rpn_samples = 64
  # Of convolutions and dense layers: float32, bfloat16, or bfloat16_products.
  model.dtype = 'float32'

  # Training data: arguments of train_batches.
  config.input = inputs = ml_collections.ConfigDict()
  # Record files, or a TFDS directory with its split.
  inputs.file_pattern = 'local/shapes:train'
  # (height, width) of the input.
  inputs.canvases = ((128, 128),)
  # Images per step over all devices and hosts.
  inputs.batch_size = 8
  # Objects per image; pictures have at most 8.
  inputs.max_instances = 8
  # Side of the mask of an instance.
  inputs.mask_size = 56
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

  # Fields of OptimizerOptions.
  config.optimizer = optimizer = ml_collections.ConfigDict()
  # After warm-up, for the whole batch.
  optimizer.learning_rate = 0.08
  # The batch that this rate is for; for another the rate grows in proportion,
  # unless it is given too. None: never.
  optimizer.tuned_batch_size = 8
  # Steps of linear warm-up.
  optimizer.warmup_steps = 200
  # Where warm-up starts.
  optimizer.warmup_learning_rate = 0.0
  # Last steps before the rate falls.
  optimizer.decay_steps = (1000, 1250)
  # Of the rate, after each of those.
  optimizer.decay_factors = (0.1, 0.01)
  # Of SGD.
  optimizer.momentum = 0.9
  # Gradients are scaled down to this norm; None: never.
  optimizer.clip_global_norm = ml_collections.config_dict.placeholder(float)
  # Times half the squared kernels, part of the loss.
  optimizer.weight_decay = 1e-4
  # Gradients of biases are multiplied by it.
  optimizer.bias_gradient_factor = 2.0
  # Share of a moving average of the parameters that stays in a step, such as
  # 0.99; the average is what is evaluated and detects. None: there is none.
  optimizer.ema_decay = ml_collections.config_dict.placeholder(float)

  # Fields of TrainingOptions.
  config.training = training = ml_collections.ConfigDict()
  # Last step, counted from the start of the run.
  training.num_steps = 1400
  # Of initial parameters and sampling.
  training.seed = 0
  # Metrics are written this often.
  training.log_every_steps = 20
  # Checkpoints are written this often, and at the end.
  training.checkpoint_every_steps = 350
  # How many of them stay, the newest.
  training.keep_checkpoints = 2
  # The best by a number like 'eval/mask_AP' stays too; None: no.
  training.keep_best = ml_collections.config_dict.placeholder(str)
  # So many evaluations that do not improve keep_best end the run; None: no.
  training.patience = ml_collections.config_dict.placeholder(int)
  # One in so many hours of training stays too; None: no.
  training.keep_every_hours = ml_collections.config_dict.placeholder(float)
  # Images of an evaluation that are drawn with their detections.
  training.pictures = 8
  # Weights to start from: a checkpoint of ours, or a file that import_weights
  # reads; '' for random values.
  training.pretrained = ''
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
  evaluation.file_pattern = 'local/shapes:val'
  # Ground truth for pycocotools; '' makes it of the records.
  evaluation.annotations_file = 'local/shapes/annotations_val.json'
  # Images per step over all devices and hosts.
  evaluation.batch_size = 20
  # Evaluate only the first so many; None: all.
  evaluation.max_images = ml_collections.config_dict.placeholder(int)
  # How often train_and_eval evaluates besides at the end; 0: not at all.
  evaluation.every_steps = 0
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


def _demo(config):
  """The shapes, from random values."""
  del config  # As it is.


def _finetune(config):
  """Other classes, from the weights of the demo."""
  # As many as the records have, and the background.
  config.model.num_classes = ml_collections.config_dict.placeholder(int)
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
  # The rate of the demo; few steps need a short warm-up.
  config.optimizer.warmup_steps = 100
  config.optimizer.decay_steps = (400, 520)
  # New heads on old features: the first gradients are large.
  config.optimizer.clip_global_norm = 5.0


def _nuclei(config):
  """Nuclei of BBBC038: one class, up to 206 of them in an image."""
  _finetune(config)
  config.input.file_pattern = 'local/nuclei/train*.tfrecord'
  config.input.canvases = ((256, 256),)
  config.input.batch_size = 4
  config.input.max_instances = 256
  config.model.num_classes = 2
  config.model.detections.max_detections = 256
  # More objects: more proposals, and more RoIs to learn from.
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
