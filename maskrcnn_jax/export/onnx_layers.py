"""Convolutions, pooling, products, NMS and RoIAlign as operators of ONNX.

Rules as in `onnx_rules`.
"""

import numpy as np

from maskrcnn_jax.export import onnx_layout as layout
from maskrcnn_jax.export.onnx_graph import (
  unsupported,
)


def convolution(graph, equation, x, kernel):
  """A convolution of maps with a constant kernel."""
  params = equation.params
  numbers = params['dimension_numbers']
  is_known = (
    (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
    == ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
    and set(params['lhs_dilation']) == {1}
    and params['batch_group_count'] == 1
    and isinstance(kernel, np.ndarray)
  )
  if not is_known:
    raise unsupported(f'the convolution {params}')
  before, after = zip(*params['padding'])
  return [
    graph.emit(
      'Conv',
      [layout.to_first(graph, x), np.transpose(kernel, (3, 2, 0, 1)), None],
      equation.outvars[0].aval.shape,
      first=True,
      strides=list(params['window_strides']),
      pads=[int(n) for n in (*before, *after)],
      dilations=list(params['rhs_dilation']),
      group=params['feature_group_count'],
    )
  ]


def max_pool(graph, equation, x):
  """Max-pooling of maps; padding takes no part in it."""
  params = equation.params
  window, strides = params['window_dimensions'], params['window_strides']
  before, after = zip(*params['padding'])
  ends = [y[i] for y in (window, strides) for i in (0, 3)]
  is_dilated = {*params['base_dilation'], *params['window_dilation']} != {1}
  if x.shape[3:] != x.shape[-1:] or {*ends} != {1} or is_dilated:
    raise unsupported(f'the pooling {params}')
  return [
    graph.emit(
      'MaxPool',
      [layout.to_first(graph, x)],
      equation.outvars[0].aval.shape,
      first=True,
      kernel_shape=list(window[1:3]),
      strides=list(strides[1:3]),
      # The file says zero padding where XLA pads with minus infinity; both
      # runtimes and the standard leave padding out of a maximum.
      pads=[int(n) for n in (*before[1:3], *after[1:3])],
    )
  ]


def dot(graph, equation, x, y):
  """A product: a 1x1 convolution of maps, a dense layer, or any other."""
  shape = equation.outvars[0].aval.shape
  (contract, with_), (batch, of) = equation.params['dimension_numbers']
  is_layer = (
    isinstance(y, np.ndarray)
    and (y.ndim, batch, with_) == (2, (), (0,))
    and contract == (len(x.shape) - 1,)
  )
  if is_layer and len(x.shape) == 4:
    kernel = y.T[:, :, None, None]
    return [
      graph.emit(
        'Conv',
        [layout.to_first(graph, x), kernel, None],
        shape,
        first=True,
        strides=[1, 1],
        pads=[0] * 4,
        dilations=[1, 1],
        group=1,
      )
    ]
  if is_layer:
    rows = int(np.prod(x.shape[1:-1]))
    flat = layout.reshape(graph, x, (x.shape[0] * rows, x.shape[-1]))
    product = graph.emit('Gemm', [flat, y], (flat.shape[0], y.shape[1]))
    return [layout.reshape(graph, product, shape)]
  x = _matrices(graph, x, batch, contract, False)
  y = _matrices(graph, y, of, with_, True)
  product = (*x.shape[:-1], y.shape[-1])
  return [layout.reshape(graph, graph.emit('MatMul', [x, y], product), shape)]


def _matrices(graph, x, batch, contract, last):
  """A tensor as `[*batch, rows, contracted]`, or transposed if `last`."""
  free = [i for i in range(len(x.shape)) if i not in (*batch, *contract)]
  order = (*batch, *contract, *free) if last else (*batch, *free, *contract)
  rows, k = (int(np.prod([x.shape[i] for i in y])) for y in (free, contract))
  lengths = [x.shape[i] for i in batch] + ([k, rows] if last else [rows, k])
  return layout.reshape(graph, layout.transposed(graph, x, order), lengths)


def keep(graph, equation, boxes, scores, valid):
  """`onnx_ops.keep` as NonMaxSuppression and a mask of what it chooses."""
  groups, n = scores.shape
  scores = graph.emit(
    'Where', [valid, scores, np.float32(-1)], (groups, n), 'float32'
  )
  chosen = graph.emit(
    'NonMaxSuppression',
    [
      boxes,
      layout.reshape(graph, scores, (groups, 1, n)),
      np.int64(equation.params['max_outputs']),
      _beside(equation.params['iou_threshold']),
      np.float32(0),
    ],
    (None, 3),
    'int64',
  )
  places = graph.emit('Gather', [chosen, np.int64([0, 2])], (None, 2), axis=1)
  count = graph.emit('Shape', [chosen], [1], start=0, end=1)
  ones = graph.emit('Expand', [np.ones(1, np.float32), count], (None,))
  nothing = layout.whole(graph, np.zeros((1, 1), np.float32), (groups, n))
  kept = graph.emit('ScatterND', [nothing, places, ones], (groups, n))
  return [graph.emit('Greater', [kept, np.float32(0.5)], kept.shape, 'bool')]


def _beside(threshold):
  """The float32 beside an IoU threshold that no quotient of small numbers is.

  An IoU equal to it is above it in OpenVINO and not in ONNX Runtime. The float
  next to it is on the side where both then decide about the threshold as
  `ops.nms` does: what is above the number itself is suppressed.
  """
  nearest = np.float32(threshold)
  side = np.inf if float(nearest) <= threshold else -np.inf
  return np.nextafter(nearest, np.float32(side))


def roi_align(graph, equation, features, boxes):
  """`onnx_ops.roi_align_p` as RoiAlign."""
  batch, n, _ = boxes.shape
  shape = equation.outvars[0].aval.shape
  if isinstance(batch, int):
    images = np.repeat(np.arange(batch), n)
  else:
    count = graph.emit('Squeeze', [graph.sizes([batch])], (), 'int64')
    images = graph.emit(
      'Range', [np.int64(0), count, np.int64(1)], (batch,), 'int64'
    )
    images = layout.reshape(graph, images, (batch, 1))
    images = layout.whole(graph, images, (batch, n))
    images = layout.reshape(graph, images, shape[:1])
  flat = layout.reshape(graph, boxes, (shape[0], 4))
  corners = graph.emit(
    'Gather', [flat, np.int64([1, 0, 3, 2])], flat.shape, axis=1
  )
  size = equation.params['size']
  return [
    graph.emit(
      'RoiAlign',
      [layout.to_first(graph, features), corners, images],
      shape,
      first=True,
      coordinate_transformation_mode='half_pixel',
      mode='avg',
      output_height=size,
      output_width=size,
      sampling_ratio=equation.params['samples'],
      spatial_scale=1.0,
    )
  ]
