"""Detects objects in image files and writes what was found, to read and to see.

The output holds `detections.json` (COCO results of all detections),
`images.json` (the images behind the ids, and the classes), `pictures/NAME.png`,
`index.html` to browse them, and `predict.json`: how it was made, which files
could not be read, and all names that were written.
"""

import collections
import concurrent.futures
import dataclasses
import json
import math
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import tqdm
from PIL import Image

from maskrcnn_jax import visualize
from maskrcnn_jax.distributed import processes
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import coco_results
from maskrcnn_jax.inference import browse, image_files, image_list
from maskrcnn_jax.inference.image_list import ImageFile
from maskrcnn_jax.inference.output_folder import OutputFolder
from maskrcnn_jax.inference.predictor import Predictor
from maskrcnn_jax.structures import Detections

# Pictures of images with more pixels are reduced.
_LARGEST_PICTURE = 2**24
# Of images with more pixels only one at a time is in memory.
_LARGE = 2**26
# Detections below are not in the page, unless they are drawn.
_LEAST_SCORE = 0.05
# Images read, and pictures drawn, beside what is being detected.
_WORKERS = min(os.cpu_count() or 1, 8)
# Unreadable files that are named one by one; `predict.json` has all.
_NAMED = 20


@dataclasses.dataclass(frozen=True)
class _Answer:
  """What came of an image: rows for the files of the output."""

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
  """Detects, and writes the output described above.

  Args:
    source: see `Predictor`.
    images: see `image_files.find`.
    output: folder to write; files in it that an earlier run wrote are replaced.
    annotations: COCO json that tells ids, sizes and classes by file name; None:
      ids count from 1.
    min_score: detections below are not drawn.
    strict: raise in the end if a file could not be read.
    compilation_cache: folder of compiled programs; '' for none. Never that of
      the checkpoint's config, which may come from a stranger.
    **options: of `Predictor`.

  Raises:
    FileNotFoundError: there are no such images, or no checkpoint.
    FileExistsError: the output holds files of others.
    ValueError: an image is not in the annotations; or with `strict`.
  """
  files, class_names = image_list.make_list(images, output, annotations)
  names = [file.picture for file in files]
  folder = OutputFolder(
    output, ['detections.json', 'images.json', 'index.html', *names]
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
  answers, skipped = _answer_all(
    predictor, files, folder.path, class_names, min_score
  )
  _write(folder, answers, class_names, predictor.category_ids, min_score)
  summary |= {
    'complete': True,
    'skipped': [
      {'file_name': str(file.path), 'reason': reason}
      for file, reason in skipped
    ],
  }
  folder.write_list(summary)
  _say(folder, answers, skipped, min_score)
  if strict and skipped:
    raise UserError(
      f'{len(skipped)} of {len(files)} files could not be read, see above.'
    )


def _answer_all(predictor, files, folder, class_names, min_score):
  """Answers by file, in their order, and (file, reason) of those skipped."""
  skipped, given, pixels, answers = [], [], {}, {}
  side = browse.picture_side(len(files))
  with (
    concurrent.futures.ThreadPoolExecutor(_WORKERS) as pool,
    tqdm.tqdm(
      total=len(files), unit='image', disable=not sys.stderr.isatty()
    ) as bar,
  ):

    def images():
      for file, image, reason in _read_all(files, pool):
        if image is None:
          skipped.append((file, reason))
          bar.update()
          continue
        given.append(file)
        pixels[len(given) - 1] = image
        yield image

    pending = collections.deque()

    def collect(most: int):
      while len(pending) > most:
        file, future = pending.popleft()
        answers[file] = future.result()
        bar.update()

    for index, found in predictor.stream(images()):
      file, image = given[index], pixels.pop(index)
      task = (file, image, found, folder, class_names, min_score, side)
      pending.append((file, pool.submit(_answer, *task)))
      collect(0 if image.size > 3 * _LARGE else 2 * _WORKERS)
    collect(0)
  return [answers[file] for file in files if file in answers], skipped


def _read_all(files, pool) -> Iterator[tuple]:
  """Yields file, pixels or None, and the reason for None; in order."""
  waiting, ahead = collections.deque(), _WORKERS
  for file in files:
    waiting.append((file, pool.submit(_read, file)))
    while len(waiting) > ahead:
      file, future = waiting.popleft()
      image, reason = future.result()
      # Where one is large, others may be.
      is_large = image is not None and image.size > 3 * _LARGE
      ahead = 0 if is_large else _WORKERS
      yield file, image, reason
  for file, future in waiting:
    yield file, *future.result()


def _read(file: ImageFile) -> tuple[np.ndarray | None, str]:
  try:
    return image_files.read(file.path, file.size), ''
  except ValueError as error:
    return None, str(error)


def _answer(
  file: ImageFile,
  image: np.ndarray,
  found: Detections,
  folder: pathlib.Path,
  class_names,
  min_score: float,
  side: int,
) -> _Answer:
  """Draws an image, and makes its rows of the other files."""
  size = image.shape[:2]
  picture = draw(image, found, class_names, min_score)
  visualize.save_png(folder / file.picture, picture)
  return _Answer(
    image={
      'id': file.image_id,
      'file_name': os.fspath(file.path),
      'height': size[0],
      'width': size[1],
      'picture': file.picture,
    },
    results=to_results(found, file.image_id, size),
    entry=browse.make_entry(
      file.name, image, found, side, min(min_score, _LEAST_SCORE)
    ),
  )


def to_results(
  found: Detections, image_id: int, image_size: tuple[int, int]
) -> list[dict]:
  """COCO results of one image, whose detections are in its own pixels."""
  batch = Detections(
    **{k: None if v is None else v[None] for k, v in vars(found).items()}
  )
  return coco_results.to_coco_results(
    batch,
    np.array([image_id], np.int64),
    np.array([image_size], np.int32),
    np.ones((1, 2), np.float32),
    np.ones(1, bool),
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


def _write(
  folder, answers: Sequence[_Answer], class_names, category_ids, min_score
) -> None:
  results = [result for answer in answers for result in answer.results]
  # As the annotations that were trained on number them.
  for result in results:
    class_id = result['category_id']
    result['category_id'] = category_ids.get(class_id, class_id)
  coco_results.write_results(results, folder.path / 'detections.json')
  categories = [
    {'id': category_ids.get(i, i), 'name': class_names[i]}
    for i in sorted(class_names)
  ]
  images = [answer.image for answer in answers]
  content = {'images': images, 'categories': categories}
  folder.write('images.json', json.dumps(content, indent=1) + '\n')
  page = browse.make_page(
    [answer.entry for answer in answers], class_names, min_score
  )
  folder.write('index.html', page)


def _say(folder, answers, skipped, min_score) -> None:
  count = sum(
    result['score'] >= min_score
    for answer in answers
    for result in answer.results
  )
  print(
    f'{len(answers)} images with {count} objects of score {min_score:g} or '
    f'more: open {folder.path / "index.html"}'
  )
  if skipped:
    print(f'{len(skipped)} files could not be read:', file=sys.stderr)
  for file, reason in skipped[:_NAMED]:
    print(f'  {file.path}: {reason}', file=sys.stderr)
  if len(skipped) > _NAMED:
    print(
      f'  and {len(skipped) - _NAMED} more, see {folder.path / "predict.json"}',
      file=sys.stderr,
    )
