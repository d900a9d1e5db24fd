"""Client of `torchvision_side`: torchvision's Mask R-CNN in a process."""

import contextlib
import json
import pathlib
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from maskrcnn_jax.benchmarks import examples
from maskrcnn_jax.benchmarks.subject import LEARNING_RATE, Subject
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.weights import torchvision

_SCRIPT = pathlib.Path(__file__).with_name('torchvision_side.py')
# torchvision builds every pyramid and head with these.
_FIXED = {
  'pyramid_channels': 256,
  'mask_channels': 256,
  'box_size': 7,
  'mask_size': 14,
  'max_level': 6,
  'rpn_convs': 1,
  'box_convs': 0,
  'box_dense': 2,
  'bgr': False,
}
_OPTIMIZER = {
  'learning_rate': LEARNING_RATE,
  'momentum': 0.9,
  'weight_decay': 1e-4,
}


class TorchvisionProcess:
  """A child process that answers requests, one at a time."""

  def __init__(self, python: str, script: pathlib.Path = _SCRIPT):
    """Starts it.

    Args:
      python: an interpreter that has torch and torchvision.
      script: what it runs.

    Raises:
      UserError: there is no such interpreter.
    """
    self._python = python
    # A file, not a pipe, which would fill up: it is read at the end.
    self._stderr = tempfile.TemporaryFile('w+')  # noqa: SIM115
    try:
      self._process = subprocess.Popen(
        [python, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=self._stderr,
        text=True,
      )
    except OSError as error:
      self._stderr.close()
      raise UserError(
        '--against must be an interpreter that has torch and torchvision, such '
        f'as venv/bin/python; {python!r} cannot be started: {error.strerror}.',
        argument='against',
        path=python,
      ) from error

  @property
  def pid(self) -> int:
    """Process id of the child."""
    return self._process.pid

  def ask(self, name: str, **fields: Any) -> dict[str, Any]:
    """The answer of the child.

    Args:
      name: of the request.
      fields: JSON values.

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
      raise UserError(
        f'{self._python} of --against ended: {self._last_line()}',
        argument='against',
        path=self._python,
        item=name,
      )
    answer = json.loads(line)
    if 'error' in answer:
      raise UserError(
        f'torchvision in {self._python} failed in {name}: {answer["error"]}',
        argument='against',
        path=self._python,
        item=name,
      )
    return answer

  def load_weights(self, variables: Any) -> None:
    """Sends our `params` and `batch_stats`."""
    self._load('load_weights', torchvision.state_dict(variables))

  def load_batches(self, batches: Sequence[Mapping[str, Any]]) -> None:
    """Sends our batches, of one size, to take in turn."""
    self._load('load_batches', arrays_of(batches))

  def _load(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    with tempfile.TemporaryDirectory(prefix='maskrcnn_jax_') as folder:
      np.savez(f'{folder}/arrays.npz', **arrays)
      self.ask(name, path=f'{folder}/arrays.npz')

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

  def _last_line(self) -> str:
    self._process.wait()
    self._stderr.seek(0)
    lines = self._stderr.read().strip().splitlines()
    return lines[-1] if lines else f'exit code {self._process.returncode}'


@contextlib.contextmanager
def beside(
  python: str | None,
  subject: Subject,
  threads: int,
  channels_last: bool | None = None,
) -> Iterator[tuple[TorchvisionProcess | None, dict[str, Any] | None]]:
  """torchvision's model with our batches; weights are to be loaded.

  Args:
    python: see `TorchvisionProcess`; None: no other side.
    subject: ours.
    threads: of the CPU.
    channels_last: memory layout of the other side; None: on a GPU.

  Yields:
    The process, and its versions, device and threads; None and None without.

  Raises:
    UserError: torchvision has no such model, or failed.
  """
  if python is None:
    yield None, None
    return
  if subject.mesh.size > 1:
    raise UserError(
      f'--against compares single devices, and this run has {subject.mesh.size}'
      ': add --config.runtime.num_devices=1.',
      argument='runtime.num_devices',
      given=subject.mesh.size,
      wanted=1,
    )
  wanted = settings(subject.model, subject.canvas)
  if channels_last is None:
    channels_last = jax.default_backend() == 'gpu'
  process = TorchvisionProcess(python)
  try:
    facts = process.ask(
      'set_up',
      model=wanted | {'channels_last': channels_last},
      threads=threads,
      optimizer=_OPTIMIZER,
    )
    process.load_batches(subject.host_batches)
    yield process, facts | {'channels_last': channels_last}
  finally:
    process.close()


def settings(model: MaskRCNN, canvas: Sequence[int]) -> dict[str, Any]:
  """Settings of torchvision's model with our sizes; see `torchvision_side`.

  Args:
    model: ours.
    canvas: (height, width) of the images.

  Raises:
    UserError: torchvision has no such model; `item` is the first field that
      differs.
  """
  anchors = model.anchors.scales_per_octave * len(model.anchors.aspect_ratios)
  backbone = model.backbone
  norms = ('frozen', 'batch')
  fields = {
    **{name: (getattr(model, name), value) for name, value in _FIXED.items()},
    'backbone.width': (backbone.width, 64),
    'backbone.norm': (
      backbone.norm,
      backbone.norm if backbone.norm in norms else ' or '.join(norms),
    ),
    'backbone.stride_in_1x1': (backbone.stride_in_1x1, False),
    'head_norm.kind': (model.head_norm.kind, 'none'),
    'anchors (per cell)': (anchors, 3),
  }
  wrong = [
    f'model.{name}={ours} (torchvision: {theirs})'
    for name, (ours, theirs) in fields.items()
    if ours != theirs
  ]
  if wrong:
    raise UserError(
      f"torchvision's Mask R-CNN differs from {', '.join(wrong)}.",
      argument='against',
      item=wrong[0].partition('=')[0],
    )
  train, test = model.train_proposals, model.test_proposals
  return {
    'depth': backbone.depth,
    'norm': backbone.norm,
    'norm_epsilon': backbone.norm_epsilon,
    'frozen_stages': backbone.frozen_stages,
    'canvas': list(canvas),
    'num_classes': model.num_classes,
    'dtype': model.dtype,
    'box_channels': model.box_channels,
    'mask_convs': model.mask_convs,
    'options': {
      'rpn_pre_nms_top_n_train': train.pre_nms_top_k or 10**6,
      'rpn_pre_nms_top_n_test': test.pre_nms_top_k or 10**6,
      'rpn_post_nms_top_n_train': train.post_nms_top_k,
      'rpn_post_nms_top_n_test': test.post_nms_top_k,
      'rpn_nms_thresh': test.iou_threshold,
      'rpn_batch_size_per_image': model.rpn_targets.num_samples,
      'box_batch_size_per_image': model.sampling.num_rois,
      'box_positive_fraction': model.sampling.foreground_fraction,
      'box_score_thresh': model.detections.score_threshold,
      'box_nms_thresh': model.detections.iou_threshold,
      'box_detections_per_img': model.detections.max_detections,
    },
  }


def arrays_of(batches: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  """Batches as torchvision wants them; see
  `torchvision_side.Side.load_batches`.

  Args:
    batches: of one size.
  """
  canvas = batches[0]['images'].shape[1:3]
  counts, boxes, labels, masks = [], [], [], []
  for batch in batches:
    instances = batch['instances']
    counts.append(instances['valid'].sum(axis=1))
    for row, valid in enumerate(instances['valid']):
      own = instances['boxes'][row][valid]
      boxes.append(own[:, [1, 0, 3, 2]])
      labels.append(instances['classes'][row][valid].astype(np.int64))
      full = examples.full_masks(instances['masks'][row][valid], own, canvas)
      masks.append(np.packbits(full, axis=-1))
  return {
    'images': np.stack([batch['images'] for batch in batches]),
    'counts': np.stack(counts),
    'boxes': np.concatenate(boxes).astype(np.float32),
    'labels': np.concatenate(labels),
    'masks': np.concatenate(masks),
  }
