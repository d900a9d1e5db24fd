"""Checks of a data set against a config and its record files."""

import collections
from collections.abc import Iterator, Mapping

from maskrcnn_jax.datasets import record_index
from maskrcnn_jax.datasets.doctor.split import Split
from maskrcnn_jax.datasets.findings import Finding

_LISTED_IDS = 5


def check_config(
  config: Mapping, train: Split, val: Split | None = None
) -> Iterator[Finding]:
  """Yields findings on splits that do not match the config of a run.

  Missing fields of the config have their default, or are not checked.
  """
  model, inputs = config.get('model', {}), config.get('input', {})
  if model.get('num_classes'):  # Else the run sets it.
    for split in filter(None, (train, val)):
      yield from _check_classes(split, model['num_classes'])
  yield from _check_crowded(
    train,
    'input.max_instances',
    inputs.get('max_instances', 100),
    'the smallest are not trained on',
  )
  yield from _check_crowded(
    val or train,
    'model.detections.max_detections',
    model.get('detections', {}).get('max_detections', 100),
    'not all of them can be found',
  )
  yield from _check_records(train, 'input', inputs, 'warning')
  if val is not None:
    # An evaluation refuses records that its annotations lack.
    evaluation = config.get('evaluation', {})
    yield from _check_records(val, 'evaluation', evaluation, 'error')


def _check_classes(split: Split, num_classes: int) -> Iterator[Finding]:
  counts = split.count_classes()
  wanted = max(split.dataset.class_names, default=0) + 1
  for class_id, name in split.dataset.class_names.items():
    if class_id >= num_classes:
      # An evaluation refuses such a class even if it has no object.
      is_error = counts[class_id] or split.name == 'val'
      message = (
        f'class {class_id} ({name!r}, objects: {counts[class_id]}) is not in '
        f'the model: model.num_classes is {num_classes}, so ids may be 1 to '
        f'{num_classes - 1}. Set --config.model.num_classes={wanted}.'
      )
      severity = 'error' if is_error else 'warning'
      yield split.finding('class_beyond_model', message, severity)
  if split.name == 'train' and 1 < wanted < num_classes:
    message = (
      f'the largest class id is {wanted - 1}, model.num_classes is '
      f'{num_classes}: the model has {num_classes - wanted} classes without '
      f'training data. --config.model.num_classes={wanted} would do.'
    )
    yield split.finding('unused_classes', message, 'note')


def _check_crowded(split, field, most, words) -> Iterator[Finding]:
  counts = collections.Counter(
    each.image_id for each in split.objects if not each.is_crowd
  )
  kind = f'more_than_{field.rpartition(".")[-1]}'
  largest = max(counts.values(), default=0)
  for image in split.dataset.images:
    count = counts[image.image_id]
    if count > most:
      message = (
        f'has {count} objects, {field} is {most}: {words}. Set '
        f'--config.{field}={largest}, which fits all images.'
      )
      yield split.finding(kind, message, image=image)


def _check_records(
  split: Split, section: str, options: Mapping, severity: str
) -> Iterator[Finding]:
  pattern, field = options.get('file_pattern'), f'{section}.file_pattern'
  if not pattern:
    return
  try:
    index = record_index.index_records(pattern, options.get('split'))
  except (ValueError, OSError) as error:
    remedy = 'Make records with maskrcnn-jax prepare, or set'
    message = f'{field}: {error} {remedy} --config.{field}.'
    yield Finding('no_records', str(pattern), message)
    return
  listed = {image.image_id for image in split.dataset.images}
  recorded = set(index.image_ids.tolist())
  for kind, ids, here, there, how in (
    ('record_without_image', recorded - listed, field, split.file, severity),
    ('image_without_record', listed - recorded, split.file, field, 'warning'),
  ):
    if ids:
      first = ', '.join(map(str, sorted(ids)[:_LISTED_IDS]))
      more = ', ..' if len(ids) > _LISTED_IDS else ''
      message = (
        f'{len(ids)} images of {here} are not in {there} (ids {first}{more}). '
        'Run maskrcnn-jax prepare again, or name the records of this json.'
      )
      yield Finding(kind, str(pattern), message, how)
