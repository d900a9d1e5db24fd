"""Client of `torchvision_side`: torchvision's models in a process."""

import contextlib
import dataclasses
import json
import operator
import pathlib
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from maskrcnn_jax import visualize
from maskrcnn_jax.benchmarks import measure
from maskrcnn_jax.benchmarks.subject import LEARNING_RATE, Subject
from maskrcnn_jax.errors import UserError, invalid
from maskrcnn_jax.models import backbones
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.weights import torchvision

_SCRIPT = pathlib.Path(__file__).with_name('torchvision_side.py')
# torchvision builds every model with these.
_FIXED = {
  'pyramid_channels': (256,),
  'mask_channels': (256,),
  'box_size': (7,),
  'mask_size': (14,),
  'max_level': (6,),
  'rpn_convs': (1,),
  'box_convs': (0,),
  'box_dense': (2,),
  'bgr': (False,),
  'anchors.scales_per_octave': (1,),
  'backbone.kind': ('resnet',),
  'backbone.width': (64,),
  'backbone.groups': (1,),
  'backbone.norm': ('frozen', 'batch'),
  'backbone.stride_in_1x1': (False,),
  'head_norm.kind': ('none',),
}
# Its options, and our fields with their values.
_OPTIONS = {
  'rpn_pre_nms_top_n_train': 'train_proposals.pre_nms_top_k',
  'rpn_pre_nms_top_n_test': 'test_proposals.pre_nms_top_k',
  'rpn_post_nms_top_n_train': 'train_proposals.post_nms_top_k',
  'rpn_post_nms_top_n_test': 'test_proposals.post_nms_top_k',
  'rpn_nms_thresh': 'test_proposals.iou_threshold',
  'rpn_batch_size_per_image': 'rpn_targets.num_samples',
  'box_batch_size_per_image': 'sampling.num_rois',
  'box_positive_fraction': 'sampling.foreground_fraction',
  'box_score_thresh': 'detections.score_threshold',
  'box_nms_thresh': 'detections.iou_threshold',
  'box_detections_per_img': 'detections.max_detections',
}
# Subjects that need the whole model.
_WHOLE = {'step', 'inference'}
_OPTIMIZER = {'lr': LEARNING_RATE, 'momentum': 0.9, 'weight_decay': 1e-4}


class TorchvisionProcess:
  """A child process that answers requests, one at a time."""

  def __init__(self, python: str):
    """Starts an interpreter that has torch and torchvision.

    Raises:
      UserError: there is no such interpreter.
    """
    self._python = python
    # A file, not a pipe, which would fill up: it is read at the end.
    self._stderr = tempfile.TemporaryFile('w+')  # noqa: SIM115
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
    command = [python, str(_SCRIPT)]
    try:
      self._process = subprocess.Popen(
        command, stderr=self._stderr, text=True, **pipes
      )
    except OSError as error:
      self._stderr.close()
      raise self._error(
        f'cannot be started: {error.strerror}. It must be an interpreter that '
        'has torch and torchvision, such as venv/bin/python.'
      ) from error

  def ask(self, name: str, **fields: Any) -> dict[str, Any]:
    """The answer of the child.

    Args:
      name: of the request, a method of `torchvision_side.Side`.
      fields: its arguments, JSON values.

    Raises:
      UserError: the request failed, or the child ended; with the reason.
    """
    try:
      request = json.dumps({'do': name, **fields})
      print(request, file=self._process.stdin, flush=True)
      line = self._process.stdout.readline()
    except BrokenPipeError:
      line = ''
    if not line:
      code = self._process.wait()
      self._stderr.seek(0)
      lines = self._stderr.read().strip().splitlines()
      reason = lines[-1] if lines else f'exit code {code}'
      raise self._error(f'ended: {reason}', name)
    answer = json.loads(line)
    if 'error' in answer:
      raise self._error(f'failed in {name}: {answer["error"]}', name)
    return answer

  def _error(self, reason: str, item: str | None = None) -> UserError:
    return UserError(
      f'{self._python} of --against {reason}',
      argument='against',
      path=self._python,
      item=item,
    )

  def side(self, name: str, images: int, **fields: Any) -> measure.Side:
    """A request of the number of a round, which answers with its `seconds`."""

    def seconds(number):
      side.facts = self.ask(name, number=number, **fields)
      return side.facts.pop('seconds')

    side = measure.Side(seconds, images)
    return side

  def load_weights(self, variables: Any) -> None:
    """Sends our `params` and `batch_stats`."""
    self._send('load_weights', torchvision.state_dict(variables))

  def load_batches(self, batches: Sequence[Mapping[str, Any]]) -> None:
    """Sends our batches, of one size, to take in turn."""
    size = len(batches[0]['images'])
    self._send('load_batches', arrays_of(batches), batch_size=size)

  def _send(self, name, arrays, **fields) -> None:
    with tempfile.TemporaryDirectory(prefix='maskrcnn_jax_') as folder:
      np.savez(f'{folder}/arrays.npz', **arrays)
      self.ask(name, path=f'{folder}/arrays.npz', **fields)

  def close(self) -> None:
    """Ends the child process."""
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    try:
      self._process.wait(timeout=30)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._process.stdout.close()
    self._stderr.close()


@contextlib.contextmanager
def beside(
  python: str | None,
  subject: Subject,
  threads: int,
  channels_last: bool | None = None,
  what: Sequence[str] = (),
) -> Iterator[tuple[TorchvisionProcess | None, dict[str, Any] | None]]:
  """torchvision's model with our batches; weights are to be loaded.

  `what` is that of `BenchOptions`.

  Yields:
    The process, and its versions, device and threads; None and None if `python`
    is None.

  Raises:
    UserError: torchvision has no such model, or failed.
  """
  if python is None:
    yield None, None
    return
  if subject.mesh.size > 1:
    wanted = '1 with --against, which compares single devices'
    raise invalid('runtime.num_devices', subject.mesh.size, wanted)
  if channels_last is None:
    channels_last = jax.default_backend() == 'gpu'
  if subject.model.backbone.kind != 'resnet' and not _WHOLE & set(what):
    model = backbone_settings(subject.model, subject.canvas)
  else:
    model = settings(subject.model, subject.canvas)
  model['channels_last'] = channels_last
  with contextlib.closing(TorchvisionProcess(python)) as process:
    facts = process.ask(
      'set_up', model=model, threads=threads, optimizer=_OPTIMIZER
    )
    process.load_batches(subject.host_batches)
    yield process, facts | {'channels_last': channels_last}


def backbone_settings(model: MaskRCNN, canvas: Sequence[int]) -> dict[str, Any]:
  """Settings of torchvision's ConvNeXt or timm's ViT with our sizes."""
  own = backbones.KINDS[model.backbone.kind].options(model.backbone)
  return dataclasses.asdict(own) | {
    'kind': model.backbone.kind,
    'canvas': list(canvas),
    'dtype': model.dtype,
  }


def settings(model: MaskRCNN, canvas: Sequence[int]) -> dict[str, Any]:
  """Settings of torchvision's model with our sizes; see `torchvision_side`.

  Raises:
    UserError: torchvision has no such model; `argument` is the first field that
      differs.
  """
  for name, theirs in _FIXED.items():
    ours = operator.attrgetter(name)(model)
    if ours not in theirs:
      wanted = f'{" or ".join(map(repr, theirs))}, as in torchvision'
      raise invalid(f'model.{name}', ours, wanted)
  if len(model.anchors.aspect_ratios) != 3:
    ratios = model.anchors.aspect_ratios
    raise invalid('model.anchors.aspect_ratios', ratios, 'three')
  own = {name: operator.attrgetter(x)(model) for name, x in _OPTIONS.items()}
  backbone = {
    name: getattr(model.backbone, name)
    for name in ('depth', 'norm', 'norm_epsilon', 'frozen_stages')
  }
  return backbone | {
    'kind': 'resnet',
    'canvas': list(canvas),
    'num_classes': model.num_classes,
    'dtype': model.dtype,
    'box_channels': model.box_channels,
    'mask_convs': model.mask_convs,
    # None: all.
    'options': {x: 10**6 if n is None else n for x, n in own.items()},
  }


def arrays_of(batches: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  """Images and targets as torchvision wants them.

  Returns:
    `image`, `boxes` (x1, y1, x2, y2), `labels` and `masks`, of the size of the
    image and packed, by `NAME/N` where N counts the images of all batches.
  """
  arrays = {}
  for batch in batches:
    instances = batch['instances']
    for row, valid in enumerate(instances['valid']):
      image, boxes = batch['images'][row], instances['boxes'][row][valid]
      masks = np.zeros((len(boxes), *image.shape[:2]), bool)
      for whole, crop, box in zip(masks, instances['masks'][row][valid], boxes):
        whole[:] = visualize.uncrop_mask(crop, box, whole.shape)
      number = len(arrays) // 4
      arrays |= {
        f'image/{number}': image,
        f'boxes/{number}': boxes[:, [1, 0, 3, 2]],
        f'labels/{number}': instances['classes'][row][valid].astype(np.int64),
        f'masks/{number}': np.packbits(masks, axis=-1),
      }
  return arrays
