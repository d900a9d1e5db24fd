"""A self-contained HTML page to browse detections.

The page holds the images as JPEGs and the detections as numbers, and draws the
overlays itself, so its filters act on every object. It makes no requests, and
decodes only the pictures that are in view.
"""

import base64
import io
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from PIL import Image

from maskrcnn_jax.evaluation import coco_results
from maskrcnn_jax.inference import views
from maskrcnn_jax.structures import Detections

# (number of images, longer side of their pictures): pages of photographs then
# take up to about 15 MB, 90 MB and 250 MB.
_SIDES = ((100, 1024), (1000, 640), (5000, 400))
_SMALLEST_SIDE = 256
_JPEG_QUALITY = 80


def picture_side(num_images: int) -> int:
  """The longer side of the pictures in a page, in pixels."""
  sides = (side for most, side in _SIDES if num_images <= most)
  return next(sides, _SMALLEST_SIDE)


def make_entry(
  name: str,
  image: np.ndarray,
  found: Detections,
  side: int,
  min_score: float | Mapping[int | None, float],
) -> tuple[str, str]:
  """JSON of an image and its detections, and its JPEG in base64.

  Args:
    name: shown and searched for.
    image: `[height, width, 3]` uint8.
    found: detections in pixels of the image, best first.
    side: longer side of the picture; smaller images keep their size.
    min_score: detections below are not in the page, see `views.with_score`.
  """
  height, width = image.shape[:2]
  scale = min(side / max(height, width), 1.0)
  size = (max(round(height * scale), 1), max(round(width * scale), 1))
  picture = Image.fromarray(image)
  if scale < 1:
    picture = picture.resize(
      size[::-1], Image.Resampling.LANCZOS, reducing_gap=2.0
    )
  stream = io.BytesIO()
  picture.save(stream, 'JPEG', quality=_JPEG_QUALITY)
  found = views.with_score(found, min_score)
  boxes = coco_results.original_boxes(
    found.boxes, (height / size[0], width / size[1])
  )
  results = coco_results.image_results(found.replace(boxes=boxes), 0, size)
  objects = [
    {
      'class': result['category_id'],
      'score': round(result['score'], 4),
      'box': [round(x, 1) for x in result['bbox']],
      'mask': result.get('segmentation', {}).get('counts'),
    }
    for result in results
  ]
  entry = {'name': name, 'height': size[0], 'width': size[1], 'found': objects}
  jpeg = base64.b64encode(stream.getvalue()).decode('ascii')
  return _for_script(entry), jpeg


def make_page(
  entries: Iterable[str],
  jpegs: Iterable[str],
  class_names: Mapping[int, str],
  min_score: float,
) -> Iterator[str]:
  """Yields the parts of the page's text.

  Args:
    entries: JSON of the images, by `make_entry`.
    jpegs: of the same images.
    class_names: by class id; other classes are shown by their id.
    min_score: initial value of the score filter.
  """
  template = pathlib.Path(__file__).with_name('browse.html')
  head, tail = template.read_text(encoding='utf-8').split('<!-- data -->\n')
  options = {'classes': dict(class_names), 'minScore': min_score, 'images': []}
  yield f'{head}<script type="application/json" id="data">'
  yield _for_script(options).removesuffix(']}')
  yield from separated(entries, ',')
  yield ']}</script>\n'
  # One element each, read by the browser when the image is shown.
  for number, jpeg in enumerate(jpegs):
    yield f'<script type="text/plain" id="jpeg{number}">{jpeg}</script>\n'
  yield tail


def separated(texts: Iterable[str], separator: str) -> Iterator[str]:
  """Yields the texts that are not empty, and a separator between two."""
  for number, text in enumerate(filter(None, texts)):
    yield separator + text if number else text


def _for_script(value) -> str:
  """JSON without anything that looks like the end of a script element."""
  return json.dumps(value, separators=(',', ':')).replace('<', '\\u003c')
