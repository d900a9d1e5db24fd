"""Detection in image files: results, pictures and a page to browse them.

The output holds `detections.json` (COCO results of all detections),
`images.json` (images and classes behind the ids), `pictures/NAME.png`,
`index.html` to browse them, and `predict.json`: the options, the files that
could not be read, and all names that were written.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import math
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import tqdm
from PIL import Image

from maskrcnn_jax import files as files_lib
from maskrcnn_jax import visualize
from maskrcnn_jax.checkpoints import score_thresholds
from maskrcnn_jax.distributed import processes
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import coco_results
from maskrcnn_jax.inference import browse, image_files, views
from maskrcnn_jax.inference.image_files import ImageFile
from maskrcnn_jax.inference.output_folder import OutputFolder
from maskrcnn_jax.inference.predictor import Predictor
from maskrcnn_jax.structures import Detections
from maskrcnn_jax.terminal import escaped

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
  min_score: float | str = 0.5,
  strict: bool = False,
  compilation_cache: str = processes.COMPILATION_CACHE,
  exif: str | None = None,
  value_range: tuple[float, float] | None = None,
  **options,
) -> None:
  """Detects objects in image files and writes the output described above.

  Args:
    source: see `Predictor`.
    images: see `image_files.find`.
    output: folder to write; files of an earlier run in it are replaced.
    annotations: COCO json with ids, sizes and classes by file name; None: ids
      count from 1.
    min_score: detections below are not drawn; `'auto'`: below the recommended
      score of their class, see `checkpoints.score_thresholds`.
    strict: raise in the end if a file could not be read.
    compilation_cache: folder of compiled programs; '' for none. Never that of
      the checkpoint's config, which may come from a stranger.
    exif: see `datasets.prepare.prepare`.
    value_range: see `datasets.prepare.prepare`.
    **options: of `Predictor`.

  Raises:
    FileNotFoundError: there are no such images, or no checkpoint.
    FileExistsError: the output holds files that `predict` did not write.
    UserError: an image is not in the annotations; no file could be read, and
      nothing was written; or with `strict`.
  """
  scores = min_score
  if min_score == 'auto':
    scores = score_thresholds.read(source)
  files, class_names = image_files.list_images(images, output, annotations)
  files, seen = image_files.survey_files(files, annotations, exif, value_range)
  for finding in seen.findings:
    print(finding, file=sys.stderr)
  pictures = [file.picture for file in files]
  folder = OutputFolder(
    output, ['detections.json', 'images.json', 'index.html', *pictures]
  )
  summary = {
    'checkpoint': os.fspath(source),
    'min_score': min_score,
    **json.loads(json.dumps(options, default=dataclasses.asdict)),
    'complete': False,
  }
  skipped = {}
  with concurrent.futures.ThreadPoolExecutor(_WORKERS) as pool:
    images = _read_all(files, pool, skipped, seen.ranges)
    # Before the model is loaded.
    first = next(images, None)
    if first is None:
      _print_skipped(skipped)
      raise UserError(
        f'none of {len(files)} files could be read, see above.',
        path=next(iter(skipped)).path,
      )
    processes.enable_compilation_cache(compilation_cache)
    predictor = Predictor(source, **options)
    folder.claim(summary)
    with (
      _Writer(
        folder=folder.path,
        class_names=predictor.class_names or class_names,
        category_ids=predictor.category_ids,
        min_score=scores,
        side=browse.picture_side(len(files)),
      ) as writer,
      tqdm.tqdm(
        total=len(files), unit='image', disable=not sys.stderr.isatty()
      ) as bar,
    ):
      images = itertools.chain([first], images)
      for done in _detect_all(predictor, images, pool, writer):
        bar.update(done + len(skipped) - bar.n)
      writer.write_summaries(files)
  unreadable = [
    {'file_name': str(file.path), 'reason': reason}
    for file, reason in skipped.items()
  ]
  folder.finish(summary | {'complete': True, 'skipped': unreadable})
  _print_skipped(skipped, f', see {folder.path / "predict.json"}')
  if strict and skipped:
    raise UserError(
      f'{len(skipped)} of {len(files)} files could not be read, see above.',
      path=next(iter(skipped)).path,
    )


def _read_all(files, pool, skipped: dict, ranges=None) -> Iterator[tuple]:
  """Yields (file, pixels) in order; adds unreadable files to `skipped`."""
  left, reading, ahead = collections.deque(files), collections.deque(), _WORKERS
  while left or reading:
    while left and len(reading) <= ahead:
      file = left.popleft()
      task = pool.submit(
        image_files.read, file.path, file.size, file.upright, ranges
      )
      reading.append((file, task))
    file, task = reading.popleft()
    try:
      image = task.result()
    except UserError as error:
      skipped[file] = str(error)
      continue
    # Where one is large, others may be.
    ahead = 0 if image.size > 3 * _LARGE else _WORKERS
    yield file, image


def _detect_all(predictor, images, pool, writer) -> Iterator[int]:
  """Detects in (file, pixels); yields the number of images written so far."""
  waiting, writing = {}, collections.deque()

  def pixels():
    for index, (file, image) in enumerate(images):
      waiting[index] = file, image
      yield image

  done = itertools.count(1)
  for index, found in predictor.stream(pixels()):
    file, image = waiting.pop(index)
    task = pool.submit(writer.make_texts, file, image, found)
    writing.append((file, task))
    ahead = 0 if image.size > 3 * _LARGE else 2 * _WORKERS
    while len(writing) > ahead:
      writer.keep(*writing.popleft())
      yield next(done)
  for file, task in writing:
    writer.keep(file, task)
    yield next(done)


@dataclasses.dataclass
class _Writer:
  """Writes a picture per image, and the files that describe all of them.

  What those files say of an image waits in a file without a name, since images
  come in any order and memory must not grow with their number.
  """

  folder: pathlib.Path
  class_names: Mapping[int, str]
  category_ids: Mapping[int, int]
  min_score: float | Mapping[int | None, float]  # See `views.with_score`.
  side: int  # Of the pictures in the page.

  def __enter__(self):
    self._waiting = tempfile.TemporaryFile(dir=self.folder)
    self._spans, self._num_drawn = {}, 0
    return self

  def __exit__(self, *unused_error):
    with contextlib.suppress(OSError):  # What could not be written.
      self._waiting.close()

  def make_texts(
    self, file: ImageFile, image: np.ndarray, found: Detections
  ) -> tuple[int, list[str]]:
    """Number of drawn objects; JSON of the image, its results and its entry."""
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
    least = self.min_score
    if not isinstance(least, Mapping):
      least = min(least, _PAGE_MIN_SCORE)
    entry = browse.make_entry(file.name, image, found, self.side, least)
    num_drawn = len(views.with_score(found, self.min_score).scores)
    return num_drawn, [json.dumps(row), json.dumps(results)[1:-1], *entry]

  def keep(self, file: ImageFile, task: concurrent.futures.Future) -> None:
    """Stores what `make_texts` returned."""
    num_drawn, texts = task.result()
    self._num_drawn += num_drawn
    offset = self._waiting.seek(0, os.SEEK_END)
    self._spans[file.image_id] = offset, *map(len, texts)
    try:
      self._waiting.write(''.join(texts).encode('ascii'))
      self._waiting.flush()
    except OSError as error:  # A full disk.
      error.filename = self.folder
      raise

  def write_summaries(self, files: Sequence[ImageFile]) -> None:
    """Writes the other files, and prints a summary."""
    known = [file.image_id for file in files if file.image_id in self._spans]

    def texts(kind, separator):
      return browse.separated(self._read(known, kind), separator)

    categories = [
      {'id': self.category_ids.get(i, i), 'name': self.class_names[i]}
      for i in sorted(self.class_names)
    ]
    end = f'\n],\n"categories": {json.dumps(categories)}}}\n'
    self._write('detections.json', ['['], texts(1, ', '), [']\n'])
    self._write('images.json', ['{"images": [\n'], texts(0, ',\n'), [end])
    entries, jpegs = self._read(known, 2), self._read(known, 3)
    least, words = self.min_score, 'the recommended score'
    if isinstance(least, Mapping):
      least = min(least.values())
    else:
      words = f'score {least:g}'
    page = browse.make_page(entries, jpegs, self.class_names, least)
    self._write('index.html', page)
    print(
      f'{len(known)} images with {self._num_drawn} objects of {words} or more: '
      f'open {self.folder / "index.html"}'
    )

  def _read(self, image_ids, kind) -> Iterator[str]:
    """Yields the texts of one kind, by their index in those of `make_texts`."""
    for image_id in image_ids:
      offset, *lengths = self._spans[image_id]
      self._waiting.seek(offset + sum(lengths[:kind]))
      yield self._waiting.read(lengths[kind]).decode('ascii')

  def _write(self, name: str, *parts: Iterable[str]) -> None:
    with (
      files_lib.replaced(self.folder / name) as unfinished,
      unfinished.open('w', encoding='utf-8') as file,
    ):
      file.writelines(itertools.chain(*parts))


def draw(
  image: np.ndarray,
  found: Detections,
  class_names: visualize.ClassNames,
  min_score: float | Mapping[int | None, float],
) -> np.ndarray:
  """The overlay: small images enlarged, very large ones reduced."""
  found = views.with_score(found, min_score)
  times = math.ceil((image.shape[0] * image.shape[1] / _LARGEST_PICTURE) ** 0.5)
  if times > 1:
    image = np.asarray(Image.fromarray(image).reduce(times))
    found = found.replace(boxes=found.boxes / np.float32(times))
  enlarge = visualize.enlargement(image.shape[:2])
  return visualize.draw(image, found, class_names, 0.0, enlarge)


def _print_skipped(skipped: Mapping[ImageFile, str], all_of_them='') -> None:
  if skipped:
    print(f'{len(skipped)} files could not be read:', file=sys.stderr)
  for file, reason in itertools.islice(skipped.items(), _PRINTED):
    print(f'  {escaped(str(file.path))}: {reason}', file=sys.stderr)
  if len(skipped) > _PRINTED:
    more = len(skipped) - _PRINTED
    print(f'  and {more} more{all_of_them}', file=sys.stderr)
