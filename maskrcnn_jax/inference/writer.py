"""Files of `predict`: those of every image, and those that describe all."""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from maskrcnn_jax import files as files_lib
from maskrcnn_jax import visualize
from maskrcnn_jax.datasets import categories
from maskrcnn_jax.evaluation import coco_results
from maskrcnn_jax.inference import browse, labels, views
from maskrcnn_jax.inference.image_files import ImageFile
from maskrcnn_jax.structures import Detections

# Pictures of images with more pixels are reduced.
_LARGEST_PICTURE = 2**24
# Detections below are not in the page, unless they are drawn.
_PAGE_MIN_SCORE = 0.05


@dataclasses.dataclass
class Writer:
  """Writes a picture per image, and the files that describe all of them.

  What those files say of an image waits in a file without a name, since images
  come in any order and memory must not grow with their number.
  """

  folder: pathlib.Path
  class_names: Mapping[int, str]
  category_ids: Mapping[int, int]
  min_score: float | Mapping[int | None, float]  # See `views.with_score`.
  side: int  # Of the pictures in the page.
  save: Sequence[str] = ()  # See `labels`.

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
    drawn = views.with_score(found, self.min_score)
    objects = labels.write_image(
      self.folder, file, image, drawn, self.class_names, self.save
    )
    texts = [json.dumps(row), json.dumps(results)[1:-1], *entry]
    return len(drawn.scores), [*texts, json.dumps(objects)]

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

    entries = categories.entries(self.class_names, self.category_ids)
    end = f'\n],\n"categories": {json.dumps(entries)}}}\n'
    self._write('detections.json', ['['], texts(1, ', '), [']\n'])
    self._write('images.json', ['{"images": [\n'], texts(0, ',\n'), [end])
    rows, jpegs = self._read(known, 2), self._read(known, 3)
    least, words = self.min_score, 'the recommended score'
    if isinstance(least, Mapping):
      least = min(least.values())
    else:
      words = f'score {least:g}'
    page = browse.make_page(rows, jpegs, self.class_names, least)
    self._write('index.html', page)
    if 'coco' in self.save:
      images, objects = self._labelled(files)
      self._write(labels.COCO_FILE, labels.coco_parts(images, objects, entries))
    if 'yolo' in self.save:
      labels.write_yolo_classes(self.folder, self.class_names)
    print(
      f'{len(known)} images with {self._num_drawn} objects of {words} or more: '
      f'open {self.folder / "index.html"}'
    )

  def _labelled(self, files) -> tuple[Iterator[dict], Iterator[list[dict]]]:
    """Images and their objects for a COCO JSON; names as in the folder."""
    files = [file for file in files if file.image_id in self._spans]
    known = [file.image_id for file in files]
    images = (
      {
        'id': file.image_id,
        'file_name': pathlib.PurePath(file.name).as_posix(),
        **{side: json.loads(text)[side] for side in ('height', 'width')},
        **({'upright': True} if file.upright else {}),
      }
      for file, text in zip(files, self._read(known, 0))
    )
    objects = (
      [
        each
        | {
          'category_id': self.category_ids.get(
            each['category_id'], each['category_id']
          )
        }
        for each in json.loads(text)
      ]
      for text in self._read(known, 4)
    )
    return images, objects

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
