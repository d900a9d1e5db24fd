"""torchvision's Mask R-CNN in a process of its own, for a benchmark.

Or a backbone alone: torchvision's ConvNeXt, or the ViT of timm with ViTDet's
windows and relative positions (SAM's). Run by an interpreter that has torch and
torchvision, and timm for a ViT; needs neither JAX nor this package. Reads one
JSON object a line from stdin, `{"do": NAME, ...}`, and answers each with one on
stdout, which has `error` where something failed. The other side computes
nothing until the answer is there.
"""

import functools
import json
import os
import resource
import sys
import time
import types


def serve(side, requests, answers):
  """Answers lines of requests, the name of a method and its arguments."""
  for line in requests:
    request = json.loads(line)
    name = request.pop('do')
    try:
      answer = getattr(side, name)(**request)
    except Exception as error:
      answer = {'error': f'{type(error).__name__}: {error}'}
    answers.write(json.dumps(answer) + '\n')
    answers.flush()


class Side:
  """torchvision's model, optimizer and batches; methods answer requests."""

  def set_up(self, model, threads, optimizer):
    """Makes the model or backbone from its settings, and SGD."""
    import torch
    import torchvision

    self.torch = torch
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    is_cuda = torch.cuda.is_available()
    self.device = torch.device('cuda' if is_cuda else 'cpu')
    # Products of float32 as JAX makes them on a GPU.
    torch.backends.cuda.matmul.allow_tf32 = True
    self.settings = model
    layout = 'channels_last' if model['channels_last'] else 'contiguous_format'
    self.layout = getattr(torch, layout)
    make = _MAKERS[model['kind']]
    self.model = make(torch, model)
    self.model.to(self.device, memory_format=self.layout)
    trainable = [x for x in self.model.parameters() if x.requires_grad]
    self.optimizer = torch.optim.SGD(trainable, **optimizer)
    if model['kind'] == 'resnet':
      self.found = _watch_foreground(self.model)
    return {
      'torch': torch.__version__,
      'torchvision': torchvision.__version__,
      'device': torch.cuda.get_device_name() if is_cuda else 'cpu',
      'threads': torch.get_num_threads(),
      'parameters': sum(x.numel() for x in self.model.parameters()),
    }

  def load_weights(self, path):
    """Loads the `state_dict` in a .npz file."""
    self.model.load_state_dict(self._load(path))
    return {}

  def load_batches(self, path, batch_size):
    """Puts batches on the device; see `torchvision_process.arrays_of`."""
    arrays, images, targets = self._load(path), [], []
    for number in range(len(arrays) // 4):
      pixels, boxes, labels, packed = (
        arrays[f'{name}/{number}'].to(self.device)
        for name in ('image', 'boxes', 'labels', 'masks')
      )
      shifts = self.torch.arange(7, -1, -1, device=self.device)
      masks = (packed[..., None] >> shifts & 1).flatten(-2).byte()
      images.append((pixels.float() / 255).permute(2, 0, 1).contiguous())
      targets.append({'boxes': boxes, 'labels': labels, 'masks': masks})
    starts = range(0, len(images), batch_size)
    self.batches = [
      (images[x : x + batch_size], targets[x : x + batch_size]) for x in starts
    ]
    return {'batches': len(self.batches)}

  def _load(self, path):
    import numpy as np

    with np.load(path) as arrays:
      return {x: self.torch.from_numpy(arrays[x]) for x in arrays.files}

  def train_step(self, number, foreground):
    """A step of training on a batch; they are taken in turn.

    The mask head sees `foreground` RoIs of every image; None: as many as the
    model finds. The answer's `foreground` is what it saw.
    """
    images, targets = self.batches[number % len(self.batches)]
    self.model.train()
    _force_foreground(self.torch, self.model, foreground, self.settings)
    self.found.clear()
    # The fastest convolutions for the shapes, unless those change.
    self.torch.backends.cudnn.benchmark = foreground is not None
    start = self._now()
    self.optimizer.zero_grad()
    with self._precision():
      losses = self.model(images, targets)
      total = sum(losses.values())
    total.backward()
    self.optimizer.step()
    seconds = self._now() - start
    return {
      'seconds': seconds,
      'losses': {name: float(x) for name, x in losses.items()},
      'foreground': self.found[-1],
    }

  def detect(self, number):
    """Detection up to masks of 28x28 cells; pasting is timed apart."""
    images, _ = self.batches[number % len(self.batches)]
    self.model.eval()
    self.torch.backends.cudnn.benchmark = True
    transform = self.model.transform
    sizes = [image.shape[-2:] for image in images]
    paste, transform.postprocess = transform.postprocess, lambda x, *_: x
    try:
      with self.torch.no_grad():
        start = self._now()
        with self._precision():
          found = self.model(images)
        middle = self._now()
        paste(found, sizes, sizes)
        end = self._now()
    finally:
      transform.postprocess = paste
    self.scores = [x['scores'].tolist() for x in found]
    return {
      'seconds': middle - start,
      'pasting_seconds': end - middle,
      'detections': [len(x) for x in self.scores],
    }

  def detected_scores(self):
    """The scores that `detect` found last, by image."""
    return {'scores': self.scores}

  def backbone(self, number):
    """Forward and backward of the backbone alone, from loaded images."""
    images, _ = self.batches[number % len(self.batches)]
    self.model.train()
    body, pixels = self.model, self.torch.stack(images)
    if self.settings['kind'] == 'resnet':
      body = self.model.backbone.body
      pixels = self.model.transform(images)[0].tensors
    pixels = pixels.contiguous(memory_format=self.layout)
    parameters = [x for x in body.parameters() if x.requires_grad]
    start = self._now()
    with self._precision():
      features = body(pixels)
    wanted = [x for x in features.values() if x.requires_grad]
    gradients = [self.torch.ones_like(x) for x in wanted]
    self.torch.autograd.grad(wanted, parameters, gradients)
    return {'seconds': self._now() - start}

  def usage(self):
    """`peak_memory` in bytes, of the GPU or else of this process, and time."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if self.device.type == 'cuda':
      peak = self.torch.cuda.max_memory_allocated()
    return {'peak_memory': peak, 'cpu_seconds': time.process_time()}

  def _precision(self):
    enabled = self.settings['dtype'] != 'float32'
    return self.torch.autocast(
      self.device.type, self.torch.bfloat16, enabled=enabled
    )

  def _now(self):
    if self.device.type == 'cuda':
      self.torch.cuda.synchronize()
    return time.perf_counter()


def _make_convnext(torch, settings):
  """torchvision's ConvNeXt, whose four stages are returned."""
  del torch
  from torchvision.models import _utils, convnext

  widths = [*settings['widths'], None]
  stages = zip(widths, widths[1:], settings['blocks'])
  model = convnext.ConvNeXt([convnext.CNBlockConfig(*x) for x in stages])
  names = {str(2 * i + 1): str(i + 2) for i in range(len(settings['blocks']))}
  return _utils.IntermediateLayerGetter(model.features, names)


def _make_vit(torch, settings):
  """timm's ViT of SAM, whose one map is returned."""
  from timm.models import vision_transformer_sam

  model = vision_transformer_sam.VisionTransformerSAM(
    img_size=settings['canvas'][0],
    embed_dim=settings['width'],
    depth=settings['depth'],
    num_heads=settings['heads'],
    window_size=settings['window'],
    global_attn_indexes=tuple(settings['global_blocks']),
    use_rel_pos=True,
    norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
    neck_chans=0,
  )
  model.forward = lambda x: {'4': model.forward_features(x)}
  model.head = torch.nn.Identity()
  return model


def _make_model(torch, settings):
  """torchvision's Mask R-CNN; see `torchvision_process.settings`."""
  from torchvision.models import detection
  from torchvision.models.detection import (
    backbone_utils,
    faster_rcnn,
    mask_rcnn,
  )
  from torchvision.ops import misc

  norm = torch.nn.BatchNorm2d
  if settings['norm'] == 'frozen':
    norm = misc.FrozenBatchNorm2d
  backbone = backbone_utils.resnet_fpn_backbone(
    backbone_name=f'resnet{settings["depth"]}',
    weights=None,
    norm_layer=functools.partial(norm, eps=settings['norm_epsilon']),
    trainable_layers=5 - settings['frozen_stages'],
  )
  model = detection.MaskRCNN(
    backbone,
    num_classes=settings['num_classes'],
    min_size=min(settings['canvas']),
    max_size=max(settings['canvas']),
    # The images have the size of the canvas.
    _skip_resize=True,
    **settings['options'],
  )
  channels, heads = settings['box_channels'], model.roi_heads
  heads.box_head = faster_rcnn.TwoMLPHead(256 * 7 * 7, channels)
  heads.box_predictor = faster_rcnn.FastRCNNPredictor(
    channels, settings['num_classes']
  )
  layers = (256,) * settings['mask_convs']
  heads.mask_head = mask_rcnn.MaskRCNNHeads(256, layers, 1)
  return model


_MAKERS = {
  'resnet': _make_model,
  'convnext': _make_convnext,
  'vit': _make_vit,
}


def _watch_foreground(model):
  """A list to which each step appends the foreground RoIs of its images."""
  found, heads = [], model.roi_heads
  select = heads.select_training_samples

  def watched(proposals, targets):
    samples = select(proposals, targets)
    found.append([int((labels > 0).sum()) for labels in samples[2]])
    return samples

  heads.select_training_samples = watched
  return found


def _force_foreground(torch, model, foreground, settings):
  """Gives every image `foreground` foreground RoIs; None: as it finds them.

  Boxes with an IoU above 0.5 with an object are added to the proposals, as the
  boxes of the objects are anyway.
  """
  heads = model.roi_heads
  sampler = heads.fg_bg_sampler
  if foreground is None:
    sampler.positive_fraction = settings['options']['box_positive_fraction']
    heads.__dict__.pop('add_gt_proposals', None)
    return
  sampler.positive_fraction = foreground / sampler.batch_size_per_image
  height, width = settings['canvas']

  def add_near(self, proposals, boxes):
    added = []
    for others, own in zip(proposals, boxes):
      # Twice as many as needed, for the sampler picks them at random.
      repeats = -(-2 * foreground // len(own))
      sides = (own[:, 2:] - own[:, :2]).repeat(repeats, 2)
      shifts = torch.rand(len(sides), 4, device=own.device) - 0.5
      # At most 8 % of a side: the IoU stays above 0.5.
      near = own.repeat(repeats, 1) + 0.16 * shifts * sides
      near[:, 0::2].clamp_(0, width)
      near[:, 1::2].clamp_(0, height)
      added.append(torch.cat([others, near, own]))
    return added

  heads.add_gt_proposals = types.MethodType(add_near, heads)


def main():
  """Serves on stdin and stdout; any other output goes to stderr."""
  # The folder of this file, whose modules could hide those of others.
  sys.path.pop(0)
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  serve(Side(), sys.stdin, answers)


if __name__ == '__main__':
  main()
