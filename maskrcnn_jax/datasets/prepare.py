"""Conversion of images and their annotations to record files.

Workers read and check images and decode masks; this process writes. The files
do not depend on the number of workers: image i of the JSON goes to file i
modulo the number of files, in order.
"""

import collections
import dataclasses
import functools
import glob
import itertools
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from maskrcnn_jax import files
from maskrcnn_jax.datasets import (
  coco_json,
  examples,
  labelled,
  workers,
)
from maskrcnn_jax.datasets.findings import Finding, raise_errors
from maskrcnn_jax.datasets.formats import convert
from maskrcnn_jax.errors import UserError, invalid

_IMAGES_PER_FILE = 500
_SUFFIX = '.tfrecord'
# Warnings on what is kept.
_KEPT = (
  *('duplicate_object', 'rotation_unclear', 'values_clipped'),
  *('class_without_objects', 'class_of_crowds', 'image_in_both'),
)
# Words in the name of an output that need not have objects of every class.
_HELD_OUT = {
  *('val', 'valid', 'validation', 'minival', 'dev', 'eval', 'evaluation'),
  *('test', 'testdev', 'testing'),
}


@dataclasses.dataclass(frozen=True)
class Summary:
  """Counts of what was written and skipped; `str` gives a table."""

  files: tuple[str, ...]  # Of records.
  num_images: int
  num_empty: int  # Images without an object.
  num_objects: int  # With crowds.
  num_crowd: int
  findings: Sequence[Finding]  # Skipped objects and notes.
  seconds: float
  data_format: str = convert.COCO
  annotations_file: str | None = None  # Written, for another format than COCO.

  def counts(self) -> collections.Counter:
    """Number of findings by kind."""
    return collections.Counter(each.kind for each in self.findings)

  def __str__(self) -> str:
    many = f'{len(self.files)} files, {self.files[0]} ..'
    lines = [
      many if len(self.files) > 1 else self.files[0],
      f'          read as {self.data_format}',
      *([self.annotations_file] if self.annotations_file else ()),
      f'{self.num_images:9d} images, {self.num_empty} of them without objects',
      f'{self.num_objects:9d} objects, {self.num_crowd} of them crowds',
    ]
    first = {each.kind: each for each in reversed(self.findings)}
    for kind, count in sorted(self.counts().items()):
      is_noted = first[kind].severity == 'note' or kind in _KEPT
      happened = 'noted' if is_noted else 'skipped'
      lines.append(f'{count:9d} {kind} ({happened}), such as {first[kind]}')
    lines.append(f'{self.seconds:9.0f} seconds')
    return '\n'.join(lines)


def prepare(
  images_dir: str | os.PathLike,
  annotations_file: str | os.PathLike,
  output_pattern: str | os.PathLike,
  num_shards: int | None = None,
  *,
  captions_file: str | os.PathLike | None = None,
  image_ids: Sequence[int] | None = None,
  drop_outside: bool = False,
  **options,
) -> Summary:
  """Writes the record files of a data set, all or none.

  For a format other than COCO, a COCO JSON for evaluation is written beside
  them: `DIR/instances_train.json`.

  Args:
    images_dir: folder that the JSON's file names are relative to.
    annotations_file: COCO instances JSON; for other formats a folder.
    output_pattern: `DIR/train`, `DIR/train.tfrecord` or `DIR/train-*.tfrecord`;
      the files become `DIR/train-00000-of-00008.tfrecord` and so on.
    num_shards: number of files; by default one for every 500 images.
    captions_file: COCO captions JSON.
    image_ids: ids of the images to write, in the order of the JSON; None: all.
    drop_outside: skip objects whose box ends outside the image, as the
      reference converter does; by default such a box is clipped.
    **options: of `labelled.LabelOptions`. Where the output is called val or
      test, see `is_held_out`, classes may be empty anyway.

  Raises:
    FileExistsError: there are files of that name.
    InvalidDataError: the JSON or an image cannot be used; raised after all
      images were read.
    UserError: an argument is wrong, or all usable objects are crowds.
  """
  start = time.monotonic()
  stem = _stem(output_pattern)
  options = labelled.LabelOptions(**options)
  source = options.source(images_dir, annotations_file)
  options = dataclasses.replace(
    options,
    data_format=convert.find_format(options.data_format, source),
    allow_empty_classes=options.allow_empty_classes or is_held_out(stem),
  )
  json_file = None
  if options.data_format != convert.COCO:
    json_file = json_beside(stem)
    _require_absent([json_file])
  file = json_file or os.fspath(annotations_file)
  found = labelled.read(source, options, file, image_ids)
  dataset = coco_json.add_captions(found.dataset, captions_file)
  found = dataclasses.replace(found, dataset=dataset)
  summary = write(found, stem, num_shards, drop_outside)
  seconds = time.monotonic() - start
  return dataclasses.replace(summary, seconds=seconds)


def write(
  images: labelled.LabelledImages,
  stem: str,
  num_shards: int | None = None,
  drop_outside: bool = False,
) -> Summary:
  """Writes record files, and `json_beside` them for another format than COCO.

  Args:
    images: the data set.
    stem: path that the file numbers are appended to.
    num_shards, drop_outside: see `prepare`.

  Raises:
    FileExistsError: there are files of that name.
    InvalidDataError: an image cannot be used.
    UserError: all usable objects are crowds, or those of a class.
  """
  start, source = time.monotonic(), images.source
  paths = _name_files(stem, len(images.dataset.images), num_shards)
  is_coco = images.data_format == convert.COCO
  json_file = None if is_coco else json_beside(stem)
  findings = [*images.findings]
  counts = np.zeros(4, int)  # Of images, empty ones, objects and crowds.
  learnt, crowds = collections.Counter(), set()  # By class.
  made = make_examples(
    *(images.dataset, source.images_dir, source.num_workers, drop_outside),
    images.ranges,
  )
  from maskrcnn_jax.datasets import records

  with records.open_writers(paths) as writers:
    for writer, (example, found) in zip(itertools.cycle(writers), made):
      findings += found
      if example is not None:
        writer.write(records.encode_record(example))
        objects = len(example.classes)
        counts += (1, not objects, objects, example.is_crowd.sum())
        learnt.update(example.classes[~example.is_crowd].tolist())
        crowds.update(example.classes[example.is_crowd].tolist())
    raise_errors(findings)
    if counts[2] == counts[3]:
      message = (
        f'{source.labels} has no usable object that is not a crowd: nothing '
        'could be learnt. maskrcnn-jax check names the reasons.'
      )
      skipped = [x for x in findings if x.severity == 'warning']
      for kind, count in collections.Counter(x.kind for x in skipped).items():
        first = next(x for x in skipped if x.kind == kind)
        message += f'\n{count:9d} {kind}, such as {first}'
      raise UserError(message, path=source.labels, given=int(counts[3]))
    empty = images.find_empty(learnt, crowds)
    raise_errors(empty)
    findings += empty
    if json_file:
      files.write_text(json_file, json.dumps(images.lists()))
  return Summary(
    *(tuple(paths), *counts.tolist(), findings, time.monotonic() - start),
    *(images.data_format, json_file),
  )


def is_held_out(stem: str) -> bool:
  """Whether records are called those of a validation or a test set.

  One of the words of the file name is val, test or the like, and none is train:
  `instances_val2017` and `my-test`, but neither `valves` nor `train_test`.
  """
  words = {*re.findall('[a-z]+', os.path.basename(stem).lower())}
  return not words.isdisjoint(_HELD_OUT) and 'train' not in words


def json_beside(stem: str) -> str:
  """Path of the COCO JSON that is written beside record files."""
  folder, name = os.path.split(stem)
  return os.path.join(folder, f'instances_{name}.json')


def make_examples(
  dataset: coco_json.CocoDataset,
  images_dir: str | os.PathLike,
  num_workers: int | None = None,
  drop_outside: bool = False,
  ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Iterator[tuple[examples.ImageExample | None, list[Finding]]]:
  """Yields what `examples.make_example` returns, in the order of the JSON."""
  tasks = (
    (
      image,
      dataset.annotations.get(image.image_id, ()),
      dataset.captions.get(image.image_id, ()),
    )
    for image in dataset.images
  )
  make = functools.partial(
    examples.make_example,
    class_names=dataset.class_names,
    images_dir=images_dir,
    drop_outside=drop_outside,
    ranges=ranges,
  )
  return workers.map_images(make, tasks, len(dataset.images), num_workers)


def _stem(output_pattern):
  """The path that file numbers are appended to."""
  pattern = os.fspath(output_pattern)
  stem = pattern.removesuffix(_SUFFIX).removesuffix('*').removesuffix('-')
  if not os.path.basename(stem) or glob.has_magic(stem):
    raise invalid('output_pattern', pattern, f'like DIR/train-*{_SUFFIX}')
  return stem


def _name_files(stem, num_images, num_shards):
  """Paths of the files to write, none of which exists."""
  if num_shards is None:
    num_shards = -(-num_images // _IMAGES_PER_FILE)
  if num_shards < 1:
    raise invalid('num_shards', num_shards, '1 or more')
  _require_absent(sorted(glob.glob(f'{glob.escape(stem)}-*-of-*{_SUFFIX}')))
  num_shards = min(num_shards, num_images)
  return [
    f'{stem}-{shard:05d}-of-{num_shards:05d}{_SUFFIX}'
    for shard in range(num_shards)
  ]


def _require_absent(paths):
  present = [path for path in paths if os.path.exists(path)]
  if present:
    raise FileExistsError(
      f'{present[0]} exists ({len(present)} such files): remove it or choose '
      'another output_pattern.'
    )
