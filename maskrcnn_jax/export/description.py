"""`export.json`: inputs, outputs, canvases and resizing of an export."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

# In the order of `program.OUTPUTS`.
_MEANINGS = {
  'boxes': '(y1, x1, y2, x2) in pixels of the canvas; divide by the scales to '
  'have those of the image',
  'scores': '0 to 1, best first',
  'classes': 'class id, see class_names; 0 on padding',
  'masks': 'probabilities on a grid over the box',
  'valid': 'false on padding, which follows the detections of an image',
}
_RESIZE = (
  'Take the canvas whose fit shrinks the image least: '
  'scale = min(fit / (height, width)), the first of several equals.',
  'size = max(floor(scale * (height, width)), 1), computed in float64 if '
  'exact_sizes, else in float32.',
  'Resize to size: bilinear, half-pixel centers, no antialiasing.',
  'For uint8 round half up. Pad with zeros at the bottom and right.',
  'image_sizes is size. The scales are size / (height, width) per axis if '
  'exact_sizes, else scale for both.',
)


def metadata(
  about: Mapping[str, Any], canvas: Mapping[str, Any]
) -> dict[str, str]:
  """Texts for a file of one canvas: json by key, enough to use it alone.

  Args:
    about: of `describe`.
    canvas: its entry of the canvas.
  """
  keys = ('step', 'made_with', 'inputs', 'outputs', 'class_names', 'resize')
  values = {key: about[key] for key in keys if key in about}
  values |= {key: canvas[key] for key in ('canvas', 'fit')}
  return {
    key: json.dumps(value, ensure_ascii=False) for key, value in values.items()
  }


def describe(
  options,
  programs: Sequence[Mapping[str, Any]],
  shapes: Mapping[str, Sequence[Any]],
  exact_sizes: bool,
  mask_pasting: str,
  class_names: Mapping[int, str],
  min_scores: Mapping[int | None, float],
  origin: Mapping[str, Any],
) -> dict[str, Any]:
  """The content of `export.json`.

  Args:
    options: `exporter.ExportOptions`, completed.
    programs: `canvas`, `fit` and `program` or `signature` of each canvas.
    shapes: (shape, dtype) of each output.
    exact_sizes: see `resizing.ResizeOptions`.
    mask_pasting: see `evaluation.mask_pasting`.
    class_names: by class id.
    min_scores: recommended score thresholds by class id, of others by None;
      empty if the model was not evaluated.
    origin: versions and step.
  """
  batch = options.batch_size or 'batch'
  return {
    'format': 1,
    **origin,
    'platforms': list(options.platforms),
    'batch_size': options.batch_size,
    'inputs': {
      'images': {
        'shape': [batch, 'height', 'width', 3],
        'dtype': options.image_dtype,
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
    'min_scores': {
      'others' if k is None else str(k): v for k, v in min_scores.items()
    },
    'mask_pasting': mask_pasting,
    'resize': {'exact_sizes': exact_sizes, 'rule': list(_RESIZE)},
    'canvases': [dict(program) for program in programs],
  }
