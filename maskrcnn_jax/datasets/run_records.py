"""Records of a run: prepared once from images and labels, then used again.

The folder `WORKDIR/records` appears whole. It holds `train-*.tfrecord` and, if
there are validation images, `val-*.tfrecord`; `split.json` if these were held
out of the training images; and `prepared.json`: the options, the fingerprints
of images and labels, and the sizes of the record files, which are compared
before the records are used again.
"""

import dataclasses
import glob
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from maskrcnn_jax import files
from maskrcnn_jax.datasets import fingerprints, holdout, labelled, prepare
from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.datasets.formats import convert
from maskrcnn_jax.datasets.formats.source import parsed
from maskrcnn_jax.datasets.labelled import LabelledImages
from maskrcnn_jax.datasets.run_data import TRAIN, VAL, RunData
from maskrcnn_jax.errors import UserError

_FOLDER, _DESCRIPTION, _SPLIT = 'records', 'prepared.json', 'split.json'
_VERSION = 1
_LISTED = 5  # Differences that an error lists.


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Format and fingerprints of one part of the data."""

  data_format: str
  labels: fingerprints.Files
  images: fingerprints.Files


@dataclasses.dataclass(frozen=True)
class Description:
  """Content of `prepared.json`."""

  num_images: Mapping[str, int]  # By part.
  options: Mapping[str, Any]
  inputs: Mapping[str, Inputs]
  records: Mapping[str, int]  # Sizes of the files.


def folder(workdir: str | os.PathLike) -> pathlib.Path:
  """The folder of the records."""
  return pathlib.Path(workdir, _FOLDER)


def pattern(workdir: str | os.PathLike, part: str) -> str:
  """The record files of a part, as `input.file_pattern` names them."""
  path = folder(workdir)
  if ',' in str(path):
    raise UserError(
      f'The name of {workdir} must not have a comma, which separates record '
      'files.',
      argument='--workdir',
      path=workdir,
    )
  return f'{glob.escape(str(path))}/{part}-*.tfrecord'


def is_prepared(workdir: str | os.PathLike) -> bool:
  """Whether the records of a workdir are complete."""
  return (folder(workdir) / _DESCRIPTION).is_file()


def has_validation(workdir: str | os.PathLike) -> bool:
  """Whether there are records of validation images."""
  return any(folder(workdir).glob(f'{VAL}-*'))


def prepare_all(workdir: str | os.PathLike, data: RunData) -> str:
  """Prepares the records of a run; returns a table of what was written.

  Raises:
    UserError: see `prepare.prepare` and `holdout.hold_out`; or the folder is
      there already, or the workdir lies among images or labels.
  """
  final = folder(workdir)
  if final.exists():
    raise UserError(
      f'{final} is there, but without {_DESCRIPTION}: move it away or take '
      'another --workdir.',
      argument='--workdir',
      path=final,
    )
  pattern(workdir, TRAIN)  # Raises before anything is read.
  # Of a command that was killed; the lock of the workdir keeps out others.
  for path in final.parent.glob(f'.{_FOLDER}-*.unfinished'):
    shutil.rmtree(path, ignore_errors=True)
  with files.new_folder(final) as new:
    parts, inputs = _read_parts(new, workdir, data)
    if VAL in parts:
      findings = [*parts[VAL].findings, *_find_shared(parts, inputs)]
      parts[VAL] = dataclasses.replace(parts[VAL], findings=findings)
    summaries = {
      part: prepare.write(images, str(new / part), None, data.drop_outside)
      for part, images in parts.items()
    }
    description = Description(
      {part: len(x.dataset.images) for part, x in parts.items()},
      *(data.options(), inputs, _record_sizes(new)),
    )
    content = {'version': _VERSION, **dataclasses.asdict(description)}
    files.write_text(new / _DESCRIPTION, json.dumps(content))
  return '\n'.join(
    # With the paths that files have in the end.
    f'{part} records:\n{summary}'.replace(str(new), str(final))
    for part, summary in summaries.items()
  )


def check(workdir: str | os.PathLike, data: RunData | None) -> Description:
  """Checks that records are complete, and those of images and labels.

  Args:
    workdir: directory of the run, where they are.
    data: images and labels; None: whatever they were made of.

  Returns:
    The description of the records.

  Raises:
    UserError: they are not; `given` lists the differences.
  """
  place = files.not_a_link(folder(workdir))
  found = _read_description(place / _DESCRIPTION)
  if _record_sizes(place) != found.records:
    raise UserError(
      f'{place} has not the record files that were prepared: '
      f'{", ".join(found.records)} of {list(found.records.values())} bytes. '
      'Take another --workdir.',
      path=place,
      given=_record_sizes(place),
      wanted=found.records,
    )
  if data is not None:
    _check_inputs(place, found, data)
  return found


def _check_inputs(place, found, data) -> None:
  """Raises if records are of other options, images or labels."""
  changed = {
    flag: [f'{flag}: {found.options.get(flag)} before, {value} now']
    for flag, value in data.options().items()
    if value != found.options.get(flag)
  }
  for part, source in {} if changed else data.sources().items():
    before, prefix = found.inputs[part], '' if part == TRAIN else f'{part}_'
    files_of = fingerprints.changes(
      source, before.data_format, before.labels, before.images
    )
    changed |= {f'--{prefix}{k}': lines for k, lines in files_of.items()}
  lines = [*itertools.chain.from_iterable(changed.values())]
  if not lines:
    return
  listed = [f'  {line}' for line in lines[:_LISTED]]
  if len(lines) > _LISTED:
    listed.append(f'  and {len(lines) - _LISTED} more')
  raise UserError(
    '\n'.join([f'The data of {place} are others now:', *listed])
    + '\nA run goes on with the same data only: take another --workdir (or '
    f'remove {place} if nothing was trained on it), or leave out --images and '
    'its options to go on with the records as they are.',
    argument=next(flag for flag in changed if changed[flag]),
    path=place,
    given=lines,
  )


def _read_parts(new, workdir, data):
  """Labelled images and inputs by part; writes names of classes and a split."""
  sources = data.sources()
  train, inputs = _read_part(sources[TRAIN], data, workdir)
  parts, inputs = {TRAIN: train}, {TRAIN: inputs}
  if VAL in sources:
    # The same numbers for both.
    source = dataclasses.replace(
      sources[VAL], numbers=train.dataset.category_names
    )
    parts[VAL], inputs[VAL] = _read_part(source, data, workdir, train.ranges)
  elif data.val_share:
    held = holdout.hold_out(train.dataset, data.val_share, data.val_seed)
    rest = {x.image_id for x in train.dataset.images} - {*held}
    first = dataclasses.replace(train.part(rest), findings=train.findings)
    parts = {TRAIN: first, VAL: train.part(held)}
    # Only those to train on need objects of every class.
    parts[VAL] = dataclasses.replace(parts[VAL], allow_empty_classes=True)
    names = {
      part: {x.image_id: x.file_name for x in images.dataset.images}
      for part, images in parts.items()
    }
    split = {'val_share': data.val_share, 'val_seed': data.val_seed, **names}
    files.write_text(new / _SPLIT, json.dumps(split, indent=1) + '\n')
  return parts, inputs


def _find_shared(parts, inputs) -> Iterator[Finding]:
  """Yields the validation images whose files are training images too."""
  train, val = (
    {
      image: prints[name][-1]
      for image in parts[part].dataset.images
      if (name := fingerprints.written_name(image.file_name)) in prints
    }
    for part in (TRAIN, VAL)
    for prints in [inputs.get(part, inputs[TRAIN]).images]
  )
  trained = {digest: image for image, digest in train.items()}
  for image, digest in val.items():
    if digest in trained:
      yield Finding(
        'image_in_both',
        os.path.join(parts[VAL].source.images_dir, image.file_name),
        f'is also the image {trained[digest].file_name} to train on, which '
        'raises the score. Remove it from one of them.',
        'warning',
        image.image_id,
      )


def _read_part(
  source, data, workdir, ranges=None
) -> tuple[LabelledImages, Inputs]:
  """Labelled images of a source, and what they are made of."""
  data_format = convert.find_format(data.data_format, source)
  fingerprints.check_outside(source, data_format, workdir)
  # Before they are read: a change meanwhile is noticed by the next command.
  labels = fingerprints.of_labels(source, data_format)
  options = dataclasses.replace(
    data,
    data_format=data_format,
    # Those of validation images come with ranges.
    allow_empty_classes=data.allow_empty_classes or ranges is not None,
  )
  file = os.fspath(source.labels)
  found = labelled.read(source, options, file, known=ranges)
  names = [image.file_name for image in found.dataset.images]
  images = fingerprints.of_images(source, data_format, names)
  return found, Inputs(data_format, labels, images)


def _record_sizes(place) -> dict[str, int]:
  found = sorted(place.glob('*.tfrecord'))
  return {path.name: files.not_a_link(path).stat().st_size for path in found}


def _read_description(path) -> Description:
  content = files.read_json(files.not_a_link(path))
  with parsed(path):
    if content.pop('version') != _VERSION:
      raise ValueError('another version')
    found = Description(**content)
    inputs = {part: Inputs(**each) for part, each in found.inputs.items()}
    if (VAL in inputs) != found.options['--val_annotations']:
      raise ValueError('inputs and options differ')
    for each in inputs.values():
      prints = [*each.labels.values(), *each.images.values()]
      if not all(isinstance(x, list) and len(x) == 4 for x in prints):
        raise ValueError('no fingerprints')
    return dataclasses.replace(found, inputs={TRAIN: inputs[TRAIN], **inputs})
