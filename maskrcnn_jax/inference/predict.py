"""Detection in image files: results, pictures and a page to browse them.

The output holds `detections.json` (COCO results of all detections),
`images.json` (images and classes behind the ids), `pictures/NAME.png`,
`index.html` to browse them, and `predict.json`: the options, the files that
could not be read, and all names that were written.
"""

import collections
import concurrent.futures
import dataclasses
import functools
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


@dataclasses.dataclass(frozen=True)
class _Output:
  """An image's rows of `images.json`, `detections.json` and the page."""

  image: dict
  results: list[dict]
  entry: dict


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
  class_names = predictor.class_names or class_names
  summary = {
    'checkpoint': os.fspath(source),
    'min_score': min_score,
    **json.loads(json.dumps(options, default=dataclasses.asdict)),
    'complete': False,
  }
  folder.claim(summary)
  write = functools.partial(
    _write_image,
    folder=folder.path,
    class_names=class_names,
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
    for file, output in _detect_all(predictor, images, pool, write):
      outputs[file] = output
      bar.update(len(outputs) + len(skipped) - bar.n)
  outputs = [outputs[file] for file in files if file in outputs]
  _write_summaries(
    folder.path, outputs, class_names, predictor.category_ids, min_score
  )
  unreadable = [
    {'file_name': str(file.path), 'reason': reason}
    for file, reason in skipped.items()
  ]
  folder.finish(summary | {'complete': True, 'skipped': unreadable})
  _print_summary(folder.path, outputs, skipped, min_score)
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


def _detect_all(
  predictor, images, pool, write
) -> Iterator[tuple[ImageFile, _Output]]:
  """Yields (file, output) for (file, pixels), in the order they are found."""
  waiting, writing = {}, collections.deque()

  def pixels():
    for index, (file, image) in enumerate(images):
      waiting[index] = file, image
      yield image

  for index, found in predictor.stream(pixels()):
    file, image = waiting.pop(index)
    writing.append((file, pool.submit(write, file, image, found)))
    ahead = 0 if image.size > 3 * _LARGE else 2 * _WORKERS
    while len(writing) > ahead:
      file, future = writing.popleft()
      yield file, future.result()
  for file, future in writing:
    yield file, future.result()


def _write_image(
  file: ImageFile,
  image: np.ndarray,
  found: Detections,
  *,
  folder: pathlib.Path,
  class_names: Mapping[int, str],
  category_ids: Mapping[int, int],
  min_score: float,
  side: int,
) -> _Output:
  """Writes the picture of an image, and makes its rows of the other files."""
  height, width = image.shape[:2]
  with files_lib.replaced(folder / file.picture) as unfinished:
    picture = draw(image, found, class_names, min_score)
    visualize.save_png(unfinished, picture)
  return _Output(
    image={
      'id': file.image_id,
      'file_name': os.fspath(file.path),
      'height': height,
      'width': width,
      'picture': file.picture,
    },
    results=coco_results.image_results(
      found, file.image_id, (height, width), category_ids
    ),
    entry=browse.make_entry(
      file.name, image, found, side, min(min_score, _PAGE_MIN_SCORE)
    ),
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


def _write_summaries(
  folder, outputs, class_names, category_ids, min_score
) -> None:
  """Writes `detections.json`, `images.json` and `index.html`."""
  results = [result for output in outputs for result in output.results]
  coco_results.write_results(results, folder / 'detections.json')
  content = {
    'images': [output.image for output in outputs],
    'categories': [
      {'id': category_ids.get(i, i), 'name': class_names[i]}
      for i in sorted(class_names)
    ],
  }
  files_lib.write_text(
    folder / 'images.json', json.dumps(content, indent=1) + '\n'
  )
  page = browse.make_page(
    [output.entry for output in outputs], class_names, min_score
  )
  files_lib.write_text(folder / 'index.html', page)


def _print_summary(folder, outputs, skipped, min_score) -> None:
  scores = [result['score'] for output in outputs for result in output.results]
  count = sum(score >= min_score for score in scores)
  print(
    f'{len(outputs)} images with {count} objects of score {min_score:g} or '
    f'more: open {folder / "index.html"}'
  )
  if skipped:
    print(f'{len(skipped)} files could not be read:', file=sys.stderr)
  for file, reason in list(skipped.items())[:_PRINTED]:
    print(f'  {file.path}: {reason}', file=sys.stderr)
  if len(skipped) > _PRINTED:
    print(
      f'  and {len(skipped) - _PRINTED} more, see {folder / "predict.json"}',
      file=sys.stderr,
    )
