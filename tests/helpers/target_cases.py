"""Random images, instances and head outputs for properties of the targets.

Hypothesis draws what decides the outcome: the number of boxes, their places,
and which of them coincide. All other numbers come from a seed that it draws.
"""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import quick
from hypothesis import strategies as st

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.models import targets as targets_lib
from maskrcnn_jax.models.heads import BoxOutputs, RPNOutputs
from maskrcnn_jax.models.mask_rcnn import MaskRCNN, TrainOutputs
from maskrcnn_jax.models.proposals import propose
from maskrcnn_jax.ops import matching
from maskrcnn_jax.structures import Instances
from maskrcnn_jax.training import train_step

# The same examples everywhere; none is kept on disk.
hypothesis.settings.register_profile(
  'few', max_examples=15, deadline=None, derandomize=True, database=None
)
hypothesis.settings.register_profile(
  'many', max_examples=200, deadline=None, derandomize=True, database=None
)

FAMILIES = ('coco:habana_1x', 'coco:torchvision')
CANVAS = (64, 96)
BATCH = 2
NUM_ROWS = 9  # Of the instances, six of them valid at most.
NUM_CLASSES = 5
NUM_PROPOSALS = 24
_MASK_SIZE = 14
# Limits that random anchors and proposals reach.
_SMALL = {
  'num_classes': NUM_CLASSES,
  'max_level': 4,
  'mask_size': 4,
  'train_proposals': {'pre_nms_top_k': 20, 'post_nms_top_k': NUM_PROPOSALS},
  'rpn_targets': {'num_samples': 24},
  'sampling': {'num_rois': 16},
  'losses': {'rpn_samples': 24},
}


@functools.cache
def make_model(family: str) -> MaskRCNN:
  """The model of a shipped config with few classes, anchors and RoIs."""
  section = config_lib.load_config(family).model.to_dict()
  for name, value in _SMALL.items():
    section[name] = section[name] | value if isinstance(value, dict) else value
  return MaskRCNN.from_config(section)


@st.composite
def box(draw):
  """A box in pixels, often an odd one."""
  height, width = CANVAS
  kind = draw(
    st.sampled_from(
      ['plain'] * 4 + ['no side', 'pixel', 'border', 'outside', 'huge', 'thin']
    )
  )
  y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
  if kind == 'plain':
    return (y, x, y + draw(st.integers(1, 60)), x + draw(st.integers(1, 60)))
  return {
    'no side': (y, x, y, x + 20),
    'pixel': (y, x, y + 1, x + 1),
    'border': (0, x, height, width),
    'outside': (height + y, -width - x, 2 * height + y, -x),
    'huge': (y - 1e5, x, y + 1e5, x + 1e5),
    'thin': (y, x, y + 1e-6, x + 30),
  }[kind]


@st.composite
def cases(draw):
  """Arguments of `run`, as NumPy arrays."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  instances = [_instances(draw, rng) for _ in range(BATCH)]
  sizes = [
    [draw(st.integers(1, side)) for side in CANVAS] for _ in range(BATCH)
  ]
  case = {
    'instances': jax.tree.map(lambda *x: np.stack(x), *instances),
    'image_sizes': np.float32(sizes),
    'valid': np.array([draw(st.booleans()) or draw(st.booleans()), True]),
    'key': draw(st.integers(0, 100)),
    # All different, so that there are no ties.
    'priorities': rng.permuted(
      np.tile(np.arange(NUM_PROPOSALS + NUM_ROWS, dtype=np.float32), (BATCH, 1))
      / 100,
      axis=1,
    ),
  }
  sizes = jax.eval_shape(head_outputs)
  return case | {
    name: jax.tree.map(lambda x: _numbers(draw, rng, x.shape), part)
    for name, part in sizes.items()
  }


def _instances(draw, rng):
  """Instances of one image: the first rows are valid, the others zeros."""
  boxes = draw(st.lists(box(), max_size=6))
  if len(boxes) > 1 and draw(st.booleans()):
    boxes[-1] = boxes[0]
  count = len(boxes)
  filled = np.zeros((NUM_ROWS, 4), np.float32)
  filled[:count] = np.reshape(boxes, (-1, 4))
  valid = np.arange(NUM_ROWS) < count
  classes = [draw(st.integers(1, NUM_CLASSES - 1)) for _ in range(count)]
  masks = 255 * rng.integers(0, 2, (NUM_ROWS, _MASK_SIZE, _MASK_SIZE))
  return Instances(
    boxes=filled,
    classes=np.int32(classes + [0] * (NUM_ROWS - count)),
    masks=np.where(valid[:, None, None], masks, 0).astype(np.uint8),
    valid=valid,
  )


def _numbers(draw, rng, shape):
  """Normal numbers of a drawn size, some of them far out."""
  values = rng.normal(size=shape) * draw(st.sampled_from([0.0, 1.0, 10.0]))
  extreme = draw(st.sampled_from([0.0, 50.0, -50.0, 1e4, -1e4, 1e30, -1e30]))
  return np.float32(np.where(rng.uniform(size=shape) < 0.1, extreme, values))


def head_outputs():
  """Outputs of the heads, zeros."""
  model = make_model(FAMILIES[0])
  levels = model.anchor_boxes(CANVAS)
  sizes = {level: (BATCH, len(x)) for level, x in levels.items()}
  rois = (BATCH, model.sampling.num_rois, NUM_CLASSES)
  return {
    'rpn': RPNOutputs(
      {level: jnp.zeros(size) for level, size in sizes.items()},
      {level: jnp.zeros((*size, 4)) for level, size in sizes.items()},
    ),
    'box': BoxOutputs(jnp.zeros(rois), jnp.zeros((*rois, 4))),
    'mask_logits': jnp.zeros((BATCH, model.sampling.num_foreground, 8, 8)),
  }


def run(family: str, case) -> dict:
  """Results of all stages from the head outputs to losses and gradients.

  Args:
    family: name of a config.
    case: see `cases`.

  Returns:
    `anchor_labels` and `rpn` (RPNTargets), `proposals`, `candidate_labels` and
    `candidate_valid`, `rois`, `box_deltas`, `masks`, `losses`, and `gradients`
    of their sum.
  """
  return jax.tree.map(np.asarray, _run(make_model(family), case))


@functools.partial(quick.jit, static_argnums=0)
def _run(model, case):
  valid = case['valid']
  instances = case['instances']
  instances = instances.replace(valid=instances.valid & valid[:, None])
  anchors = model.anchor_boxes(CANVAS)
  found = {
    'anchor_labels': _labels(
      [anchors[level] for level in sorted(anchors)],
      instances,
      model.rpn_targets.matching,
    ),
    'rpn': targets_lib.rpn_targets(
      anchors, instances, valid, jax.random.key(case['key']), model.rpn_targets
    ),
    'proposals': propose(
      case['rpn'],
      anchors,
      case['image_sizes'],
      model.train_proposals,
      model.plus_one,
    ),
  }
  proposals = found['proposals']
  proposals = proposals.replace(valid=proposals.valid & valid[:, None])
  candidates = jnp.concatenate([proposals.boxes, instances.boxes], axis=1)
  found['candidate_labels'] = jnp.stack(
    [
      _labels(
        [candidates[row]],
        jax.tree.map(lambda x, row=row: x[row : row + 1], instances),
        model.sampling.matching,
      )[0]
      for row in range(BATCH)
    ]
  )
  found['candidate_valid'] = jnp.concatenate(
    [proposals.valid, instances.valid], axis=1
  )
  rois = targets_lib.sample_rois(
    proposals, instances, case['priorities'], model.sampling
  )
  found['rois'] = rois
  found['box_deltas'] = targets_lib.roi_box_targets(
    rois, instances, model.box_weights, model.plus_one
  )
  found['masks'] = targets_lib.mask_targets(
    rois.first(model.sampling.num_foreground),
    instances,
    2 * model.mask_size,
    model.mask_threshold,
  )

  def total(heads):
    outputs = TrainOutputs(
      heads['rpn'], rois, heads['box'], heads['mask_logits']
    )
    losses = train_step.training_losses(
      model, outputs, instances, valid, found['rpn']
    )
    return sum(losses.values()), losses

  heads = {name: case[name] for name in ('rpn', 'box', 'mask_logits')}
  (_, losses), gradients = jax.value_and_grad(total, has_aux=True)(heads)
  return found | {'losses': losses, 'gradients': gradients}


def _labels(levels, instances, options):
  """Labels `[batch, n]` of matching alone, over all levels."""

  def one_image(boxes, valid):
    anchors = jnp.concatenate(levels)
    return matching.match(anchors, boxes, valid, options).labels

  return jax.vmap(one_image)(instances.boxes, instances.valid)


def permuted(case, orders):
  """The case with the rows of its instances in another order.

  Args:
    case: see `cases`.
    orders: `[batch, NUM_ROWS]`, the old row of each new one.
  """

  def rows_of(x):
    return np.stack([row[order] for row, order in zip(x, orders)])

  others, own = np.split(case['priorities'], [NUM_PROPOSALS], axis=1)
  return case | {
    'instances': jax.tree.map(rows_of, case['instances']),
    'priorities': np.concatenate([others, rows_of(own)], axis=1),
  }
