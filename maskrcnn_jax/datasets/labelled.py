"""Labelled images: a data set as its labels describe it, before conversion."""

import collections
import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence

from maskrcnn_jax.datasets import (
  categories,
  coco_files,
  coco_json,
  coco_values,
  survey,
  value_range,
)
from maskrcnn_jax.datasets.findings import Finding, raise_errors
from maskrcnn_jax.datasets.formats import convert
from maskrcnn_jax.datasets.formats.source import Source
from maskrcnn_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelOptions:
  """Options of labels and their images, for `prepare`, `check` and a run.

  Attributes:
    data_format: one of `convert.FORMATS`; by default it is found.
    classes: names of other formats' classes, see `class_names.read`.
    num_workers: processes; None: one per core.
    allow_outside: see `coco_files.check_file`.
    allow_empty_classes: a category of a COCO JSON may have no objects to learn
      from.
    exif: 'upright' or 'stored', what the labels mean of photos that EXIF
      rotates where their size does not tell; None: see `survey`.
    value_range: values of more than 8 bits that become 0 and 255; None: see
      `survey`.
  """

  data_format: str = convert.AUTO
  classes: str | None = None
  num_workers: int | None = None
  allow_outside: bool = False
  allow_empty_classes: bool = False
  exif: str | None = None
  value_range: tuple[float, float] | None = None

  def __post_init__(self):
    survey.check_options(self.exif, self.value_range)

  def source(
    self,
    images_dir: str | os.PathLike,
    labels: str | os.PathLike,
    numbers: Mapping[int, str] | None = None,
  ) -> Source:
    """The images and labels with these options; see `Source`."""
    return Source(images_dir, labels, self.classes, self.num_workers, numbers)


@dataclasses.dataclass(frozen=True)
class LabelledImages:
  """A data set whose labels are read and checked.

  Attributes:
    source: images and labels.
    data_format: one of `convert.FORMATS` but `auto`.
    content: lists of a COCO JSON.
    dataset: the same, checked; `upright` of every image is known.
    ranges: see `survey.Survey`.
    findings: of labels and images, without errors.
    allow_empty_classes: see `prepare.prepare`.
  """

  source: Source
  data_format: str
  content: Mapping[str, list]
  dataset: coco_json.CocoDataset
  ranges: Mapping[str, value_range.Range]
  findings: Sequence[Finding]
  allow_empty_classes: bool = False

  def part(self, image_ids: Collection[int]) -> 'LabelledImages':
    """Some of the images, in their order, without the findings."""
    dataset = _select(self.dataset, image_ids)
    return dataclasses.replace(self, dataset=dataset, findings=())

  def find_empty(
    self, counts: Mapping[int, int], crowds: Collection[int]
  ) -> list[Finding]:
    """See `categories.find_empty`; other formats list what a project has."""
    is_error = self.data_format == convert.COCO and not self.allow_empty_classes
    return [
      *categories.find_empty(
        *(self.dataset.class_names, counts, crowds),
        *(self.dataset.ignored_classes(), self.dataset.annotations_file),
        'error' if is_error else 'warning',
      )
    ]

  def lists(self) -> dict[str, list]:
    """The lists of a COCO JSON of the images that the data set has."""
    ids = {image.image_id for image in self.dataset.images}

    def kept(name, key):
      entries = self.content[name]
      return [x for x in entries if coco_values.read_integer(x.get(key)) in ids]

    return {
      'images': kept('images', 'id'),
      'annotations': kept('annotations', 'image_id'),
      'categories': self.content['categories'],
    }


def read(
  source: Source,
  options: LabelOptions,
  file: str,
  image_ids: Collection[int] | None = None,
  known: Mapping[str, value_range.Range] | None = None,
) -> LabelledImages:
  """Reads the labels of a data set and looks at its images.

  Args:
    source: images and labels.
    options: of a format other than `auto`.
    file: path of the COCO JSON, for findings.
    image_ids: of the images to take; None: all.
    known: see `survey.read`.

  Raises:
    InvalidDataError: there is an error in the labels.
    UserError: an argument is wrong, or there is no image.
  """
  data_format = options.data_format
  content, dataset = read_entries(
    source, data_format, file, options.allow_outside
  )
  raise_errors(dataset.findings)
  if image_ids is not None:
    dataset = _select(dataset, image_ids)
  if not dataset.images:
    raise UserError(f'{source.labels} lists no images.', path=source.labels)
  dataset, seen = survey.of_dataset(
    *(dataset, source.images_dir, options.exif, options.value_range),
    *(options.allow_outside, known),
  )
  findings = [*dataset.findings, *seen.findings]
  if data_format in convert.OF_COCO and image_ids is None:
    listed = (image.file_name for image in dataset.images)
    findings += coco_files.find_unlisted(source.images_dir, listed, file)
  found = LabelledImages(
    *(source, data_format, content, dataset, seen.ranges, findings),
    options.allow_empty_classes,
  )
  # Before images are converted, some of whose objects may turn out unusable.
  raise_errors(_empty_classes(found))
  return found


def read_entries(
  source: Source,
  data_format: str,
  file: str,
  allow_outside: bool = False,
  required: bool = True,
) -> tuple[dict[str, list], coco_json.CocoDataset]:
  """Lists of a COCO JSON, and the same with errors as findings.

  Args:
    source: images and labels.
    data_format: one of `convert.FORMATS` but `auto`.
    file: path of the COCO JSON, for findings.
    allow_outside, required: see `coco_files.find`.
  """
  content, findings = convert.read(data_format, source)
  dataset = coco_json.parse(content, file, findings)
  return content, coco_files.find(
    dataset, source.images_dir, allow_outside, required=required
  )


def _empty_classes(images) -> list[Finding]:
  """Findings on classes without objects; none if there is no object at all."""
  counts, crowds = collections.Counter(), set()
  for image in images.dataset.images:
    for entry in images.dataset.annotations.get(image.image_id, ()):
      class_id = entry.get('class_id', entry['category_id'])
      if entry.get('iscrowd'):
        crowds.add(class_id)
      else:
        counts[class_id] += 1
  return images.find_empty(counts, crowds) if counts else []


def _select(dataset, image_ids):
  """The data set with some of its images only."""
  wanted = set(image_ids)
  missing = sorted(wanted - {image.image_id for image in dataset.images})
  if missing:
    raise UserError(
      f'{dataset.annotations_file} has no image with the ids {missing[:5]} of '
      'image_ids.',
      argument='image_ids',
      path=dataset.annotations_file,
      item=missing[0],
    )
  images = tuple(x for x in dataset.images if x.image_id in wanted)
  return dataclasses.replace(dataset, images=images)
