"""Detection in image files: results, pictures and a page to browse them.

The output holds `detections.json` (COCO results of all detections),
`images.json` (images and classes behind the ids), `pictures/NAME.png`,
`index.html` to browse them, files of `labels` that were asked for, and
`predict.json`: the options, the files that could not be read, and all names
that were written.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence

import tqdm

from maskrcnn_jax.checkpoints import score_thresholds
from maskrcnn_jax.distributed import processes
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.inference import browse, image_files, labels
from maskrcnn_jax.inference.image_files import ImageFile
from maskrcnn_jax.inference.output_folder import OutputFolder
from maskrcnn_jax.inference.predictor import Predictor
from maskrcnn_jax.inference.writer import Writer
from maskrcnn_jax.terminal import escaped

# Images with more pixels are read and drawn one at a time, to bound memory.
_LARGE = 2**26
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
  save: Sequence[str] = (),
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
    exif, value_range: see `datasets.prepare.prepare`.
    save: further files to write of the drawn detections, see `labels`.
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
  names = ['detections.json', 'images.json', 'index.html', *pictures]
  names += labels.output_names(files, save)
  folder = OutputFolder(output, names)
  summary = {
    'checkpoint': os.fspath(source),
    'min_score': min_score,
    'save': list(save),
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
    image_files.warn_of_other_names(
      predictor.class_names, class_names, source, annotations
    )
    class_names = predictor.class_names or class_names
    labels.check_names(class_names, save)
    folder.claim(summary)
    with (
      Writer(
        folder=folder.path,
        class_names=class_names,
        category_ids=predictor.category_ids,
        min_score=scores,
        side=browse.picture_side(len(files)),
        save=save,
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


def _print_skipped(skipped: Mapping[ImageFile, str], all_of_them='') -> None:
  if skipped:
    print(f'{len(skipped)} files could not be read:', file=sys.stderr)
  for file, reason in itertools.islice(skipped.items(), _PRINTED):
    print(f'  {escaped(str(file.path))}: {reason}', file=sys.stderr)
  if len(skipped) > _PRINTED:
    more = len(skipped) - _PRINTED
    print(f'  and {more} more{all_of_them}', file=sys.stderr)
