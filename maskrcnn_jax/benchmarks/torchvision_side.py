"""torchvision's Mask R-CNN in a process of its own, for a benchmark.

Run by an interpreter that has torch and torchvision; needs neither JAX nor this
package. Reads one JSON object a line from stdin, `{"do": NAME, ...}`, and
answers each with one on stdout, which has `error` where something failed. The
other side computes nothing until the answer is there.
"""

import functools
import json
import os
import resource
import sys
import time
import types


def serve(side, requests, answers):
  """Answers requests until there are none.

  Args:
    side: an object; each request calls one of its methods with its fields.
    requests: lines.
    answers: a text file.
  """
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
    """Makes the model.

    Args:
      model: its settings, see `_make_model`.
      threads: of the CPU.
      optimizer: `learning_rate`, `momentum` and `weight_decay` of SGD.
    """
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
    self.layout = torch.contiguous_format
    if model['channels_last']:
      self.layout = torch.channels_last
    self.model = _make_model(torch, torchvision, model)
    self.model.to(self.device, memory_format=self.layout)
    self.optimizer = torch.optim.SGD(
      [x for x in self.model.parameters() if x.requires_grad],
      lr=optimizer['learning_rate'],
      momentum=optimizer['momentum'],
      weight_decay=optimizer['weight_decay'],
    )
    self.found = _watch_foreground(self.model)
    return {
      'torch': torch.__version__,
      'torchvision': torchvision.__version__,
      'device': torch.cuda.get_device_name() if is_cuda else 'cpu',
      'threads': torch.get_num_threads(),
    }

  def load_weights(self, path):
    """Loads weights.

    Args:
      path: .npz with the `state_dict` of the model.
    """
    import numpy as np

    with np.load(path) as arrays:
      state = {x: self.torch.from_numpy(arrays[x]) for x in arrays.files}
    wanted = set(self.model.state_dict())
    if wanted != set(state):
      raise ValueError(
        f'Missing weights: {sorted(wanted - set(state))}; unexpected: '
        f'{sorted(set(state) - wanted)}.'
      )
    self.model.load_state_dict(state)
    return {}

  def load_batches(self, path):
    """Loads batches, and puts them on the device.

    Args:
      path: .npz with `images` [n, batch, height, width, 3] in 0..255, `counts`
        [n, batch], and the `boxes`, `labels` and packed `masks` of all objects.
    """
    import numpy as np

    torch = self.torch
    self.batches = []
    with np.load(path) as arrays:
      arrays = dict(arrays)
    start = 0
    for images, counts in zip(arrays['images'], arrays['counts']):
      pictures, targets = [], []
      for image, count in zip(images, counts.tolist()):
        part = slice(start, start + count)
        start += count
        masks = np.unpackbits(arrays['masks'][part], axis=-1)
        pixels = torch.from_numpy(image.astype(np.float32) / 255)
        pictures.append(pixels.permute(2, 0, 1).contiguous().to(self.device))
        targets.append(
          {
            'boxes': torch.from_numpy(arrays['boxes'][part]).to(self.device),
            'labels': torch.from_numpy(arrays['labels'][part]).to(self.device),
            'masks': torch.from_numpy(masks).to(self.device),
          }
        )
      self.batches.append((pictures, targets))
    return {'batches': len(self.batches)}

  def train_step(self, number, foreground):
    """A step of training.

    Args:
      number: of the batch; they are taken in turn.
      foreground: RoIs of every image that the mask head sees; None: as many as
        the model finds, as it is trained.

    Returns:
      `seconds`, `loss`, and `foreground`, how many the mask head saw of every
      image.
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
      'loss': {name: float(x) for name, x in losses.items()},
      'foreground': self.found[-1],
    }

  def detect(self, number):
    """Detection up to masks of 28x28 cells; pasting is timed apart.

    Args:
      number: of the batch.

    Returns:
      `seconds`, `pasting_seconds`, and of every image its `detections`, and the
      `scores`.
    """
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
        seconds = self._now() - start
        start = self._now()
        paste(found, sizes, sizes)
        pasting = self._now() - start
    finally:
      transform.postprocess = paste
    return {
      'seconds': seconds,
      'pasting_seconds': pasting,
      'detections': [len(x['scores']) for x in found],
      'scores': [x['scores'].tolist() for x in found],
    }

  def backbone(self, number):
    """Forward and backward of the ResNet alone, from loaded images.

    Args:
      number: of the batch.
    """
    images, _ = self.batches[number % len(self.batches)]
    self.model.train()
    body = self.model.backbone.body
    batch, _ = self.model.transform(images)
    pixels = batch.tensors.contiguous(memory_format=self.layout)
    parameters = [x for x in body.parameters() if x.requires_grad]
    start = self._now()
    with self._precision():
      features = body(pixels)
    wanted = [x for x in features.values() if x.requires_grad]
    gradients = [self.torch.ones_like(x) for x in wanted]
    self.torch.autograd.grad(wanted, parameters, gradients)
    return {'seconds': self._now() - start}

  def memory(self):
    """`peak`, bytes in use at once: of the GPU, else of this process."""
    if self.device.type == 'cuda':
      return {'peak': self.torch.cuda.max_memory_allocated()}
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {'peak': most * 1024}

  def _precision(self):
    enabled = self.settings['dtype'] != 'float32'
    return self.torch.autocast(
      self.device.type, self.torch.bfloat16, enabled=enabled
    )

  def _now(self):
    if self.device.type == 'cuda':
      self.torch.cuda.synchronize()
    return time.perf_counter()


def _make_model(torch, torchvision, settings):
  """torchvision's Mask R-CNN with a ResNet.

  Args:
    torch: the module.
    torchvision: likewise.
    settings: `depth`, `norm`, `norm_epsilon`, `frozen_stages`, `canvas`,
      `num_classes`, `box_channels`, `mask_convs`, and `options`, keyword
      arguments of torchvision's model.
  """
  from torchvision.models import detection
  from torchvision.models.detection import (
    backbone_utils,
    faster_rcnn,
    mask_rcnn,
  )
  from torchvision.ops import misc

  epsilon = settings['norm_epsilon']
  norm = {
    'frozen': functools.partial(misc.FrozenBatchNorm2d, eps=epsilon),
    'batch': functools.partial(torch.nn.BatchNorm2d, eps=epsilon),
  }[settings['norm']]
  backbone = backbone_utils.resnet_fpn_backbone(
    backbone_name=f'resnet{settings["depth"]}',
    weights=None,
    norm_layer=norm,
    trainable_layers=5 - settings['frozen_stages'],
  )
  height, width = settings['canvas']
  model = detection.MaskRCNN(
    backbone,
    num_classes=settings['num_classes'],
    min_size=min(height, width),
    max_size=max(height, width),
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


def _watch_foreground(model):
  """A list to which each step appends the foreground RoIs of its images."""
  found = []
  heads = model.roi_heads
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
