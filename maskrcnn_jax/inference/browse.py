"""One self-contained HTML page to browse detections in.

The page holds the images as JPEGs and the detections as numbers, and draws one
over the other itself, so its filters act on every object. It asks the network
for nothing, and decodes only the pictures that are in view.
"""

import base64
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_jax.evaluation import coco_results
from maskrcnn_jax.structures import Detections

# Longer side of the pictures in a page of up to so many; of more, the last.
# Photographs then take about 15 MB, 90 MB and 250 MB.
_SIDES = ((100, 1024), (1000, 640), (5000, 400))
_LEAST_SIDE = 256
_JPEG_QUALITY = 80


def picture_side(num_images: int) -> int:
  """The longer side of the pictures in a page, in pixels."""
  for most, side in _SIDES:
    if num_images <= most:
      return side
  return _LEAST_SIDE


def make_entry(
  name: str, image: np.ndarray, found: Detections, side: int, min_score: float
) -> dict[str, Any]:
  """An image of the page and what is drawn over it, ready for JSON.

  Args:
    name: is shown and can be searched for.
    image: `[height, width, 3]` uint8.
    found: detections in pixels of the image, best first.
    side: longer side of the picture; smaller images stay as they are.
    min_score: detections below are left out.
  """
  keep = found.scores >= min_score
  height, width = image.shape[:2]
  scale = min(side / max(height, width), 1.0)
  size = [max(round(height * scale), 1), max(round(width * scale), 1)]
  picture = Image.fromarray(image)
  if scale < 1:
    picture = picture.resize(
      size[::-1], Image.Resampling.LANCZOS, reducing_gap=2.0
    )
  stream = io.BytesIO()
  picture.save(stream, 'JPEG', quality=_JPEG_QUALITY)
  results = coco_results.to_coco_results(
    Detections(
      boxes=found.boxes[keep][None],
      scores=found.scores[keep][None],
      classes=found.classes[keep][None],
      masks=None if found.masks is None else found.masks[keep][None],
      valid=found.valid[keep][None],
    ),
    np.zeros(1, np.int64),
    np.array([size], np.int32),
    # Input pixels per pixel of the picture.
    np.array([[height / size[0], width / size[1]]]),
    np.ones(1, bool),
  )
  return {
    'name': name,
    'height': size[0],
    'width': size[1],
    'jpeg': base64.b64encode(stream.getvalue()).decode('ascii'),
    'found': [
      {
        'class': result['category_id'],
        'score': round(result['score'], 4),
        'box': [round(x, 1) for x in result['bbox']],
        'mask': result.get('segmentation', {}).get('counts'),
      }
      for result in results
    ],
  }


def make_page(
  entries: Sequence[Mapping[str, Any]],
  class_names: Mapping[int, str],
  min_score: float,
) -> str:
  """The text of the page.

  Args:
    entries: of `make_entry`.
    class_names: name of each class; others are shown by their number.
    min_score: where the filter of scores starts.
  """
  template = pathlib.Path(__file__).with_name('browse.html')
  head, tail = template.read_text(encoding='utf-8').split('<!-- data -->\n')
  data = {
    'classes': {str(k): v for k, v in class_names.items()},
    'minScore': min_score,
    'images': [
      {k: v for k, v in entry.items() if k != 'jpeg'} for entry in entries
    ],
  }
  # Nothing inside a script element may look like its end.
  text = json.dumps(data, separators=(',', ':')).replace('<', '\\u003c')
  lines = [f'<script type="application/json" id="data">{text}</script>\n']
  # Apart, so that the browser reads one only when it is shown.
  lines += [
    f'<script type="text/plain" id="jpeg{number}">{entry["jpeg"]}</script>\n'
    for number, entry in enumerate(entries)
  ]
  return ''.join([head, *lines, tail])
