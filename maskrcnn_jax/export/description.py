"""`export.json`: all that one has to know to use the files of an export."""

from collections.abc import Mapping, Sequence
from typing import Any

# Names and meanings, in the order of `program.OUTPUTS`.
_MEANINGS = {
  'boxes': '(y1, x1, y2, x2) in pixels of the canvas; divide by the scales to '
  'have those of the image',
  'scores': '0 to 1, best first',
  'classes': 'number of the class, see class_names; 0 on padding',
  'masks': 'probabilities over the box, cell by cell',
  'valid': 'false on padding, which follows the detections of an image',
}
_RESIZE = (
  'Take the canvas whose fit shrinks the image least: '
  'scale = min(fit / (height, width)), the first of equals.',
  'size = max(floor(scale * (height, width)), 1), computed in float64 if '
  'exact_sizes, else in float32.',
  'Resize to size: bilinear, pixel centres at half, no antialiasing.',
  'For uint8 round halves up. Pad with zeros below and to the right.',
  'image_sizes is size. The scales are size / (height, width) per axis if '
  'exact_sizes, else scale for both.',
)


def describe(
  programs: Sequence[Mapping[str, Any]],
  shapes: Mapping[str, Sequence[Any]],
  batch_size: int | None,
  image_dtype: str,
  platforms: Sequence[str],
  exact_sizes: bool,
  class_names: Mapping[int, str],
  made_of: Mapping[str, Any],
) -> dict[str, Any]:
  """The content of `export.json`.

  Args:
    programs: `canvas`, `fit` and `program` or `signature` of each.
    shapes: (shape, dtype) of each output.
    batch_size: None: any.
    image_dtype: of the images.
    platforms: that the programs run on.
    exact_sizes: see `ResizeOptions` of the input pipeline.
    class_names: by number; empty if none are known.
    made_of: versions and step, to tell one export from another.
  """
  batch = 'batch' if batch_size is None else batch_size
  return {
    'format': 1,
    **made_of,
    'platforms': list(platforms),
    'batch_size': batch_size,
    'inputs': {
      'images': {
        'shape': [batch, 'height', 'width', 3],
        'dtype': image_dtype,
        'meaning': 'RGB in 0..255, zeros outside the image',
      },
      'image_sizes': {
        'shape': [batch, 2],
        'dtype': 'float32',
        'meaning': 'height and width of the part of the canvas that is image',
      },
    },
    'outputs': {
      name: {
        'shape': list(shapes[name][0]),
        'dtype': shapes[name][1],
        'meaning': meaning,
      }
      for name, meaning in _MEANINGS.items()
    },
    'class_names': {str(k): v for k, v in sorted(class_names.items())},
    'resize': {'exact_sizes': exact_sizes, 'rule': list(_RESIZE)},
    'canvases': [dict(program) for program in programs],
  }
