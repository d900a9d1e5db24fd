"""A Kalman filter of boxes that move at a constant velocity.

It follows (x, y, aspect, height): the centre, width / height and the height.
Noise is in proportion to the height, and independent in the four, so that each
has a filter of its own with a state (value, velocity per frame):

  means: `[..., 4, 2]` float64.
  covariances: `[..., 4, 2, 2]` float64.

SORT with deep association (Wojke et al. 2017), as ByteTrack uses it.
"""

import numpy as np

# Standard deviations, as shares of the height.
_POSITION, _VELOCITY = 1 / 20, 1 / 160
# Of the aspect, which has no unit: of a new track, in motion, as measured.
_ASPECTS = {'new': (1e-2, 1e-5), 'motion': (1e-2, 1e-5), 'measured': (1e-1,)}
_HEIGHT = 3  # Its place among the four.
_MOTION = np.array([[1.0, 1.0], [0.0, 1.0]])
_SMALLEST = 1e-3  # Pixels; boxes may be flat.


def measure(boxes: np.ndarray) -> np.ndarray:
  """Values (x, y, aspect, height), `[..., 4]`, of boxes `(y1, x1, y2, x2)`."""
  y1, x1, y2, x2 = np.moveaxis(np.asarray(boxes, np.float64), -1, 0)
  height = np.maximum(y2 - y1, _SMALLEST)
  return np.stack(
    [(x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / height, height], axis=-1
  )


def to_boxes(means: np.ndarray) -> np.ndarray:
  """Boxes `[..., 4]` float32 of states; never of a negative size."""
  x, y, aspect, height = np.moveaxis(means[..., 0], -1, 0)
  height = np.maximum(height, 0)
  half = np.stack([height, np.maximum(aspect, 0) * height], axis=-1) / 2
  center = np.stack([y, x], axis=-1)
  boxes = np.concatenate([center - half, center + half], axis=-1)
  return boxes.astype(np.float32)


def begin(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Means and covariances of new tracks, at rest, by their boxes `[..., 4]`."""
  values = measure(boxes)
  means = np.stack([values, np.zeros_like(values)], axis=-1)
  height = values[..., _HEIGHT]
  return means, _diagonal(height, (2 * _POSITION, 10 * _VELOCITY), 'new')


def predict(
  means: np.ndarray, covariances: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The states one frame later."""
  height = means[..., _HEIGHT, 0]
  noise = _diagonal(height, (_POSITION, _VELOCITY), 'motion')
  return means @ _MOTION.T, _MOTION @ covariances @ _MOTION.T + noise


def update(
  means: np.ndarray, covariances: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The states after measured boxes `[..., 4]` in the same frame."""
  height = means[..., _HEIGHT, 0]
  noise = _diagonal(height, (_POSITION,), 'measured')[..., 0, 0]
  variance = covariances[..., 0, 0] + noise
  gain = covariances[..., 0] / variance[..., None]
  error = measure(boxes) - means[..., 0]
  known = gain[..., :, None] * gain[..., None, :] * variance[..., None, None]
  return means + gain * error[..., None], covariances - known


def _diagonal(height, shares, kind):
  """Covariances `[..., 4, n, n]` of n independent numbers of each of the four.

  Args:
    height: `[...]` in pixels.
    shares: n standard deviations as shares of the height.
    kind: of those of the aspect.
  """
  deviations = np.abs(height)[..., None, None] * np.tile(shares, (4, 1))
  deviations[..., 2, :] = _ASPECTS[kind]
  return deviations[..., None] ** 2 * np.eye(len(shares))
