"""Augmentation of training examples: options, and the draw of its parameters.

What is drawn depends on the key of an example alone, so that a resumed run and
any number of hosts see the same. `placement` turns a draw into coordinates,
`warp` and `photometric` apply it, `copy_paste` adds objects of another image.
NumPy only.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from maskrcnn_jax import override
from maskrcnn_jax.errors import invalid

# Streams of random numbers of an example; 1 is that of `order.example_seed`.
_STREAM_OF_DRAWS = 2
# Ranges of mmdetection's PhotoMetricDistortion, which are those of SSD.
_BRIGHTNESS = 32.0
_CONTRAST = _SATURATION = (0.5, 1.5)
_HUE = 18.0 / 360.0
PERMUTATIONS = (
  *((0, 1, 2), (0, 2, 1), (1, 0, 2)),
  *((1, 2, 0), (2, 0, 1), (2, 1, 0)),
)


@dataclasses.dataclass(frozen=True)
class AugmentOptions:
  """Augmentation of training images; all of it is off by default.

  Attributes:
    short_edges: shorter sides, one of which is drawn, in place of the shorter
      side of `input.resize.fit_size`; None: no choice. Detectron2 has 640 to
      800 in steps of 32.
    scale_range: (smallest, largest) factor of the size that fits the canvas;
      what is larger is cropped. Large-scale jitter is 0.1 to 2.0, standard
      jitter 0.8 to 1.25. None: no jitter.
    vertical_flip: mirror half of the images upside down.
    quarter_turns: turn by 0, 90, 180 or 270 degrees.
    rotation: largest angle in degrees, to both sides.
    crop: smallest share of a side that a random crop keeps; None: no crop.
    crop_short_edges: half of the images are cropped to `crop_sides` pixels at
      one of these shorter sides, before they get their own size. DETR and
      MMDetection have 400, 500 and 600. None: no such crop.
    crop_sides: (smallest, largest) side of that crop.
    photometric: change brightness, contrast, saturation, hue and the order of
      the channels.
    copy_paste: share of the images onto which objects of another are pasted.
    occluded_move: pixels by which every side of a box may move without its
      object being removed, however little of it is left.
    occluded_area: an object with a side that moved further is removed if it has
      no more pixels than this.
  """

  short_edges: Sequence[int] | None = None
  scale_range: tuple[float, float] | None = None
  vertical_flip: bool = False
  quarter_turns: bool = False
  rotation: float = 0.0
  crop: float | None = None
  crop_short_edges: Sequence[int] | None = None
  crop_sides: tuple[int, int] = (384, 600)
  photometric: bool = False
  copy_paste: float = 0.0
  occluded_move: float = 10.0
  occluded_area: int = 300

  def __post_init__(self):
    for name, (is_valid, wanted) in _RULES.items():
      value = getattr(self, name)
      if not is_valid(value):
        raise invalid(f'input.augment.{name}', value, wanted)
    if self.short_edges and self.scale_range:
      wanted = 'None with input.augment.short_edges, which is a scale too'
      raise invalid('input.augment.scale_range', self.scale_range, wanted)
    if self.crop and self.crop_short_edges:
      wanted = 'None with input.augment.crop, which is a crop too'
      given = self.crop_short_edges
      raise invalid('input.augment.crop_short_edges', given, wanted)

  @property
  def is_on(self) -> bool:
    """Whether anything is drawn."""
    return any(getattr(self, name) for name in _SWITCHES)


_SWITCHES = (
  *('short_edges', 'scale_range', 'vertical_flip', 'quarter_turns'),
  *('rotation', 'crop', 'crop_short_edges', 'photometric', 'copy_paste'),
)
# Field -> test of its value and what it must be.
_EDGES = (
  lambda x: x is None or (len(x) > 0 and min(x) >= 1),
  'None, or sides of 1 pixel or more',
)
_RULES = {
  'short_edges': _EDGES,
  'crop_short_edges': _EDGES,
  'crop_sides': (
    lambda x: len(x) == 2 and 0 < x[0] <= x[1],
    '(smallest, largest) above 0',
  ),
  'scale_range': (
    lambda x: x is None or (len(x) == 2 and 0 < x[0] <= x[1]),
    'None, or (smallest, largest) above 0',
  ),
  'rotation': (lambda x: 0 <= x <= 180, 'in 0..180 degrees'),
  'crop': (lambda x: x is None or 0 < x <= 1, 'None, or a share in 0..1'),
  'copy_paste': (lambda x: 0 <= x <= 1, 'in 0..1'),
  'occluded_move': (lambda x: x >= 0, '0 or more pixels'),
  'occluded_area': (lambda x: x >= 0, '0 or more pixels'),
}


def augment_options(fields: Mapping | None) -> AugmentOptions:
  """Options of the config section `input.augment`; None: the defaults.

  Raises:
    UserError: there is no such field, or a value is out of its range.
  """
  return override.make(AugmentOptions, fields or {}, 'input.augment')


@dataclasses.dataclass(frozen=True)
class PixelCrop:
  """Crop of an image that is resized first, as by MMDetection's RandomCrop.

  Attributes:
    short_edge: shorter side of the resized image.
    sides: (smallest, largest) side of the crop; an image with less keeps all.
    shares: of the height and the width that lie in this range, 0..1 from the
      first to the last.
  """

  short_edge: int
  sides: tuple[int, int]
  shares: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Colors:
  """Photometric distortion; the defaults change nothing.

  Attributes:
    brightness: added to all values, which are in 0..255.
    contrast: factor of all values.
    contrast_first: before saturation and hue instead of after them.
    saturation: factor of the saturation.
    hue: added to the hue, as a share of a turn.
    permutation: index of `PERMUTATIONS`.
  """

  brightness: float = 0.0
  contrast: float = 1.0
  contrast_first: bool = False
  saturation: float = 1.0
  hue: float = 0.0
  permutation: int = 0


@dataclasses.dataclass(frozen=True)
class Draw:
  """Parameters of the augmentation of one example; the defaults do nothing.

  The steps are applied in this order.

  Attributes:
    turns: quarter turns against the clock.
    vertical: mirrored upside down.
    horizontal: mirrored left to right.
    crop_shares: height and width of the random crop, as shares of the image.
    pixel_crop: in place of `crop_shares`; None: not.
    crop_position: of the crop, 0..1 from the first to the last that fits.
    short_edge: length of the shorter side; None: the image fits the canvas.
    scale: factor of the size that fits the canvas.
    offset: (y, x) of the part that the canvas shows, 0..1 of what is cut off.
    angle: in degrees, against the clock.
    colors: photometric distortion.
  """

  turns: int = 0
  vertical: bool = False
  horizontal: bool = False
  crop_shares: tuple[float, float] = (1.0, 1.0)
  pixel_crop: PixelCrop | None = None
  crop_position: tuple[float, float] = (0.0, 0.0)
  short_edge: int | None = None
  scale: float = 1.0
  offset: tuple[float, float] = (0.0, 0.0)
  angle: float = 0.0
  colors: Colors = Colors()


def uniform(stream: int, seed: np.ndarray, count: int) -> np.ndarray:
  """`[count]` float64 in [0, 1), from the key of an example.

  Args:
    stream: number of this use of the key.
    seed: `[2]` int64, see `order.example_seed`.
    count: of numbers; more of them begin with the same.
  """
  key = np.asarray(seed, np.int64).view(np.uint64).tolist()
  bits = np.random.Philox(np.random.SeedSequence([stream, *key]))
  return (bits.random_raw(count) >> 11) * 2.0**-53


def draw(seed: np.ndarray, flip: bool, options: AugmentOptions) -> Draw:
  """Draws the parameters of an example.

  Every parameter has its own random number, so that switching one on does not
  change another.

  Args:
    seed: `[2]` int64, the key of the example.
    flip: mirrored left to right, see `transforms.draw_flip`.
    options: what is drawn, and from where.
  """
  u = uniform(_STREAM_OF_DRAWS, seed, 32)  # Those from u[28] on are free.
  drawn = {'horizontal': bool(flip), 'offset': (u[8], u[9])}
  if options.quarter_turns:
    drawn['turns'] = int(4 * u[0])
  if options.vertical_flip:
    drawn['vertical'] = bool(u[1] < 0.5)
  if options.crop is not None:
    drawn['crop_shares'] = _between(options.crop, 1.0, u[2:4])
    drawn['crop_position'] = (u[4], u[5])
  if options.crop_short_edges and u[22] < 0.5:
    edge = options.crop_short_edges[int(len(options.crop_short_edges) * u[23])]
    shares = tuple(u[24:26].tolist())
    drawn['pixel_crop'] = PixelCrop(edge, tuple(options.crop_sides), shares)
    drawn['crop_position'] = (u[26], u[27])
  if options.short_edges:
    drawn['short_edge'] = options.short_edges[
      int(len(options.short_edges) * u[6])
    ]
  if options.scale_range:
    (drawn['scale'],) = _between(*options.scale_range, u[7:8])
  if options.rotation:
    (drawn['angle'],) = _between(-options.rotation, options.rotation, u[10:11])
  if options.photometric:
    drawn['colors'] = _draw_colors(u[11:22])
  return Draw(**drawn)


def _draw_colors(u: np.ndarray) -> Colors:
  """Each part with a probability of one half; of 11 numbers in [0, 1)."""
  does = u[:5] < 0.5
  (brightness,) = _between(-_BRIGHTNESS, _BRIGHTNESS, u[5:6])
  (contrast,) = _between(*_CONTRAST, u[6:7])
  (saturation,) = _between(*_SATURATION, u[7:8])
  (hue,) = _between(-_HUE, _HUE, u[8:9])
  return Colors(
    brightness=brightness if does[0] else 0.0,
    contrast=contrast if does[1] else 1.0,
    contrast_first=bool(u[10] < 0.5),
    saturation=saturation if does[2] else 1.0,
    hue=hue if does[3] else 0.0,
    permutation=int(6 * u[9]) if does[4] else 0,
  )


def _between(low: float, high: float, u: np.ndarray) -> tuple[float, ...]:
  """Numbers of [low, high), as exact as those of [0, 1)."""
  return tuple((low + (high - low) * u).tolist())
