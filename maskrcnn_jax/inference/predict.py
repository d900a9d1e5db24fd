"""Detection in image files: results, pictures and a page to browse them.

The output holds `detections.json` (COCO results of all detections),
`images.json` (images and classes behind the ids), `pictures/NAME.png`,
`index.html` to browse them, and `predict.json`: the options, the files that
could not be read, and all names that were written.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import json
import math
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tqdm
from PIL import Image

from maskrcnn_jax import files as files_lib
from maskrcnn_jax import visualize
from maskrcnn_jax.distributed import processes
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import coco_results
from maskrcnn_jax.inference import browse, image_files
from maskrcnn_jax.inference.image_files import ImageFile
from maskrcnn_jax.inference.output_folder import OutputFolder
from maskrcnn_jax.inference.predictor import Predictor
from maskrcnn_jax.structures import Detections

# Pictures of images with more pixels are reduced.
_LARGEST_PICTURE = 2**24
# Images with more pixels are read and drawn one at a time, to bound memory.
_LARGE = 2**26
# Detections below are not in the page, unless they are drawn.
_PAGE_MIN_SCORE = 0.05
# Images read ahead, and drawn behind, of those being detected.
_WORKERS = min(os.cpu_count() or 1, 8)
# Unreadable files that are printed; `predict.json` has all.
_PRINTED = 20


def predict(
  source,
  images: Sequence[str],
  output: str,
  annotations: str | None = None,
  min_score: float = 0.5,
  strict: bool = False,
  compilation_cache: str = processes.COMPILATION_CACHE,
  **options,
) -> None:
  """Detects objects in image files and writes the output described above.

  Args:
    source: see `Predictor`.
    images: see `image_files.find`.
    output: folder to write; files of an earlier run in it are replaced.
    annotations: COCO json with ids, sizes and classes by file name; None: ids
      count from 1.
    min_score: detections below are not drawn.
    strict: raise in the end if a file could not be read.
    compilation_cache: folder of compiled programs; '' for none. Never that of
      the checkpoint's config, which may come from a stranger.
    **options: of `Predictor`.

  Raises:
    FileNotFoundError: there are no such images, or no checkpoint.
    FileExistsError: the output holds files that `predict` did not write.
    UserError: an image is not in the annotations; or with `strict`.
  """
  files, class_names = image_files.list_images(images, output, annotations)
  pictures = [file.picture for file in files]
  folder = OutputFolder(
    output, ['detections.json', 'images.json', 'index.html', *pictures]
  )
  processes.enable_compilation_cache(compilation_cache)
  predictor = Predictor(source, **options)
  summary = {
    'checkpoint': os.fspath(source),
    'min_score': min_score,
    **json.loads(json.dumps(options, default=dataclasses.asdict)),
    'complete': False,
  }
  folder.claim(summary)
  writer = _Writer(
    folder=folder.path,
    class_names=predictor.class_names or class_names,
    category_ids=predictor.category_ids,
    min_score=min_score,
    side=browse.picture_side(len(files)),
  )
  outputs, skipped = {}, {}
  with (
    concurrent.futures.ThreadPoolExecutor(_WORKERS) as pool,
    tqdm.tqdm(
      total=len(files), unit='image', disable=not sys.stderr.isatty()
    ) as bar,
  ):
    images = _read_all(files, pool, skipped)
    for file, output in _detect_all(predictor, images, pool, writer):
      outputs[file] = output
      bar.update(len(outputs) + len(skipped) - bar.n)
  writer.write_summaries([outputs[file] for file in files if file in outputs])
  unreadable = [
    {'file_name': str(file.path), 'reason': reason}
    for file, reason in skipped.items()
  ]
  folder.finish(summary | {'complete': True, 'skipped': unreadable})
  _print_skipped(skipped, folder.path)
  if strict and skipped:
    raise UserError(
      f'{len(skipped)} of {len(files)} files could not be read, see above.',
      path=next(iter(skipped)).path,
    )


def _read_all(files, pool, skipped: dict) -> Iterator[tuple]:
  """Yields (file, pixels) in order; adds unreadable files to `skipped`."""
  left, reading, ahead = collections.deque(files), collections.deque(), _WORKERS
  while left or reading:
    while left and len(reading) <= ahead:
      file = left.popleft()
      reading.append(
        (file, pool.submit(image_files.read, file.path, file.size))
      )
    file, future = reading.popleft()
    try:
      image = future.result()
    except UserError as error:
      skipped[file] = str(error)
      continue
    # Where one is large, others may be.
    ahead = 0 if image.size > 3 * _LARGE else _WORKERS
    yield file, image


def _detect_all(predictor, images, pool, writer) -> Iterator[tuple]:
  """Yields (file, output) for (file, pixels), in the order they are found."""
  waiting, writing = {}, collections.deque()

  def pixels():
    for index, (file, image) in enumerate(images):
      waiting[index] = file, image
      yield image

  for index, found in predictor.stream(pixels()):
    file, image = waiting.pop(index)
    task = pool.submit(writer.write_image, file, image, found)
    writing.append((file, task))
    ahead = 0 if image.size > 3 * _LARGE else 2 * _WORKERS
    while len(writing) > ahead:
      file, future = writing.popleft()
      yield file, future.result()
  for file, future in writing:
    yield file, future.result()


@dataclasses.dataclass(frozen=True)
class _Writer:
  """Writes a picture per image, and the files that describe all of them."""

  folder: pathlib.Path
  class_names: Mapping[int, str]
  category_ids: Mapping[int, int]
  min_score: float
  side: int  # Of the pictures in the page.

  def write_image(
    self, file: ImageFile, image: np.ndarray, found: Detections
  ) -> tuple[dict, list[dict], dict]:
    """Returns rows of `images.json`, `detections.json` and the page."""
    picture = draw(image, found, self.class_names, self.min_score)
    visualize.save_png(self.folder / file.picture, picture)
    height, width = image.shape[:2]
    row = {
      'id': file.image_id,
      'file_name': os.fspath(file.path),
      'height': height,
      'width': width,
      'picture': file.picture,
    }
    results = coco_results.image_results(
      found, file.image_id, (height, width), self.category_ids
    )
    least = min(self.min_score, _PAGE_MIN_SCORE)
    entry = browse.make_entry(file.name, image, found, self.side, least)
    return row, results, entry

  def write_summaries(self, outputs: Sequence[tuple]) -> None:
    """Writes the other files, and prints a summary."""
    rows, results, entries = zip(*outputs) if outputs else ([], [], [])
    results = [*itertools.chain(*results)]
    coco_results.write_results(results, self.folder / 'detections.json')
    categories = [
      {'id': self.category_ids.get(i, i), 'name': self.class_names[i]}
      for i in sorted(self.class_names)
    ]
    content = {'images': rows, 'categories': categories}
    files_lib.write_text(
      self.folder / 'images.json', json.dumps(content, indent=1) + '\n'
    )
    page = browse.make_page(entries, self.class_names, self.min_score)
    files_lib.write_text(self.folder / 'index.html', page)
    count = sum(result['score'] >= self.min_score for result in results)
    print(
      f'{len(outputs)} images with {count} objects of score {self.min_score:g} '
      f'or more: open {self.folder / "index.html"}'
    )


def draw(
  image: np.ndarray, found: Detections, class_names, min_score: float
) -> np.ndarray:
  """The overlay: small images enlarged, very large ones reduced."""
  times = math.ceil((image.shape[0] * image.shape[1] / _LARGEST_PICTURE) ** 0.5)
  if times > 1:
    image = np.asarray(Image.fromarray(image).reduce(times))
    found = found.replace(boxes=found.boxes / np.float32(times))
  return visualize.draw(
    image,
    found,
    class_names,
    min_score=min_score,
    enlarge=visualize.enlargement(image.shape[:2]),
  )


def _print_skipped(skipped: Mapping[ImageFile, str], folder) -> None:
  if skipped:
    print(f'{len(skipped)} files could not be read:', file=sys.stderr)
  for file, reason in itertools.islice(skipped.items(), _PRINTED):
    print(f'  {file.path}: {reason}', file=sys.stderr)
  if len(skipped) > _PRINTED:
    more = len(skipped) - _PRINTED
    print(f'  and {more} more, see {folder / "predict.json"}', file=sys.stderr)
