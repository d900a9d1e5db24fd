"""Scoring of COCO results by pycocotools or hotcoco: 12 numbers of each kind.

pycocotools is the reference and slow. Categories are independent until the
means at the end, so worker processes share them. hotcoco computes the same
tables in Rust. The means are pycocotools' own for both.

Runs in worker processes, which import NumPy and pycocotools alone.
"""

import collections
import contextlib
import dataclasses
import importlib
import io
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from pycocotools import coco as coco_api
from pycocotools import cocoeval
from pycocotools import mask as coco_mask

from maskrcnn_jax.errors import UserError, invalid
from maskrcnn_jax.evaluation.workers import Workers

SCORERS = ('pycocotools', 'hotcoco')
# COCO's last limit.
MAX_DETECTIONS = 100


@dataclasses.dataclass(frozen=True)
class Scores:
  """Scores of boxes or of masks."""

  numbers: np.ndarray  # `[12]` float64 in the order of `COCOeval.stats`.
  # The table they are means of, `[thresholds, recalls, classes, areas, limits]`
  # with -1 where there is nothing to measure.
  precision: np.ndarray
  matches: dict[int, np.ndarray]  # By category id, see `make_tables`.


def check_scorer(scorer: str) -> None:
  """Raises a `UserError` for a scorer that is unknown or not installed."""
  if scorer not in SCORERS:
    raise invalid('evaluation.scorer', scorer, f'one of {", ".join(SCORERS)}')
  try:
    importlib.import_module(scorer)
  except ImportError as error:
    raise UserError(
      f'The scorer {scorer!r} is not installed ({error}): '
      f"pip install 'maskrcnn-jax[{scorer}]'.",
      argument='evaluation.scorer',
      given=scorer,
    ) from error


def score(
  truth: Mapping,
  results: Sequence[Mapping],
  image_ids: Sequence[int],
  kinds: Collection[str],
  scorer: str = SCORERS[0],
  workers: Workers | None = None,
  max_detections: int = MAX_DETECTIONS,
) -> dict[str, Scores]:
  """The scores of each kind.

  Args:
    truth: COCO dataset with all that COCOeval needs.
    results: COCO result dicts.
    image_ids: the images that count, in ascending order.
    kinds: `'bbox'`, `'segm'` or both.
    scorer: one of `SCORERS`.
    workers: share the work of pycocotools; None: this process does it.
    max_detections: the best ones of an image and category that count.

  Raises:
    UserError: a result has no mask while masks are scored.
  """
  if workers is None or scorer == 'hotcoco':
    # hotcoco has threads, and is done before worker processes have started.
    workers = Workers(0)
  category_ids = sorted({each['id'] for each in truth['categories']})
  objects, found = _by_category(truth['annotations']), _by_category(results)
  jobs = []
  # Masks take longer than boxes: if they start first, all end together.
  for kind in sorted(kinds, reverse=True):
    for part in _split(category_ids, found, max(workers.count, 1)):
      own_truth = {**truth, 'annotations': _flatten(objects, part)}
      own_results = [_strip(result, kind) for result in _flatten(found, part)]
      job = (make_tables, own_truth, own_results, image_ids, part, kind)
      job = workers.submit(*job, scorer, max_detections)
      jobs.append((kind, part, job))
  tables = {kind: {} for kind in kinds}
  for kind, part, job in jobs:
    tables[kind][part] = workers.wait(job)
  return {kind: _summarize(tables[kind], category_ids, kind) for kind in kinds}


def _by_category(rows):
  """Annotations or results by category, in their order."""
  groups = collections.defaultdict(list)
  for row in rows:
    groups[row['category_id']].append(row)
  return groups


def _flatten(groups, category_ids):
  return [row for each in category_ids for row in groups.get(each, ())]


def _split(category_ids, found, num_parts):
  """Splits the categories into parts with about as many results each."""
  parts = [[] for _ in range(num_parts)]
  loads = [0] * num_parts
  sizes = {each: len(found.get(each, ())) for each in category_ids}
  for category_id in sorted(category_ids, key=sizes.get, reverse=True):
    lightest = loads.index(min(loads))
    parts[lightest].append(category_id)
    loads[lightest] += sizes[category_id] + 1
  return [tuple(sorted(part)) for part in parts]


def _strip(result, kind):
  """A result without the field that its kind ignores, to send less."""
  if kind == 'bbox':
    ignored = 'segmentation' if 'bbox' in result else None
  else:
    ignored = 'bbox' if isinstance(result.get('segmentation'), dict) else None
  return {key: value for key, value in result.items() if key != ignored}


def make_tables(
  truth: Mapping,
  results: Sequence[Mapping],
  image_ids: Sequence[int],
  category_ids: Sequence[int],
  kind: str,
  scorer: str,
  max_detections: int = MAX_DETECTIONS,
) -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]:
  """Precision, recall and matches of some categories.

  Args:
    truth: see `score`, also for the others.
    category_ids: in ascending order.

  Returns:
    COCOeval's `precision`, `[thresholds, recalls, categories, areas, limits]`,
    and `recall`, which is the same without the second axis; -1 where there is
    nothing to measure. By category id `[n, 2]`: the score of every detection,
    and 1 if it is matched to an object at an IoU of 0.5; without those that are
    ignored, in crowds or beyond the limit.
  """
  found = {**truth, 'annotations': _complete(results, truth['images'], kind)}
  # COCO objects print as they go.
  with contextlib.redirect_stdout(io.StringIO()):
    if scorer == 'hotcoco':
      import hotcoco

      evaluation = hotcoco.COCOeval(
        hotcoco.COCO(truth), hotcoco.COCO(found), kind
      )
    else:
      evaluation = _Evaluation(_index(truth), _index(found), kind)
    evaluation.params.imgIds = list(image_ids)
    evaluation.params.catIds = list(category_ids)
    evaluation.params.maxDets = [1, 10, max_detections]
    evaluation.evaluate()
    evaluation.accumulate()
    tables = evaluation.eval
    if scorer == 'hotcoco':
      # Its objects become Python's when they are read, so only those needed.
      evaluation.params.iouThrs = evaluation.params.iouThrs[:1]
      evaluation.params.areaRng = evaluation.params.areaRng[:1]
      evaluation.params.areaRngLbl = ['all']
      evaluation.evaluate()
  precision, recall = (np.asarray(tables[x]) for x in ('precision', 'recall'))
  return precision, recall, _find_matches(evaluation)


def _find_matches(evaluation) -> dict[int, np.ndarray]:
  """Scores and matches at the first IoU threshold, see `make_tables`."""
  parts = collections.defaultdict(list)
  objects_of_all_sizes = list(evaluation.params.areaRng[0])
  for found in evaluation.evalImgs:
    if found is None or list(found['aRng']) != objects_of_all_sizes:
      continue
    ids, ignored = (np.asarray(found[x])[0] for x in ('dtMatches', 'dtIgnore'))
    rows = np.stack([np.asarray(found['dtScores'], float), ids > 0], axis=-1)
    parts[found['category_id']].append(rows[~ignored.astype(bool)])
  return {key: np.concatenate(rows) for key, rows in parts.items()}


class _Evaluation(cocoeval.COCOeval):
  """COCOeval that skips matching where there is no object.

  That holds for seven of eight pairs of an image and a category with results,
  and took a quarter of the time.
  """

  def computeIoU(self, imgId, catId):  # The names are COCOeval's.
    if not self._gts.get((imgId, catId)):
      return []
    return super().computeIoU(imgId, catId)

  def evaluateImg(self, imgId, catId, aRng, maxDet):
    if self._gts.get((imgId, catId)):
      return super().evaluateImg(imgId, catId, aRng, maxDet)
    results = self._dts.get((imgId, catId))
    if not results:
      return None
    best = sorted(results, key=lambda result: -result['score'])[:maxDet]
    is_outside = [not aRng[0] <= each['area'] <= aRng[1] for each in best]
    shape = len(self.params.iouThrs), len(best)
    # The fields that are read.
    return {
      'category_id': catId,
      'aRng': aRng,
      'dtScores': [each['score'] for each in best],
      'dtMatches': np.zeros(shape),
      'dtIgnore': np.broadcast_to(is_outside, shape),
      'gtIgnore': np.zeros(0),
    }


def _index(dataset):
  indexed = coco_api.COCO()
  indexed.dataset = dataset
  indexed.createIndex()
  return indexed


def _complete(results, images, kind):
  """The results as annotations, with boxes alone or with masks alone."""
  sizes = {image['id']: image for image in images}
  fields = ('image_id', 'category_id', 'score')
  return [
    {
      **{key: result[key] for key in fields},
      'id': number,
      'iscrowd': 0,
      **_shape(result, sizes, kind),
    }
    for number, result in enumerate(results, start=1)
  ]


def _shape(result, sizes, kind):
  """The box or the mask of a result and its area, as COCO.loadRes has them."""
  box = result.get('bbox')
  if kind == 'bbox' and box is not None:
    return {'bbox': box, 'area': box[2] * box[3]}
  mask = _run_lengths(result, sizes)
  area = int(coco_mask.area(mask))
  if kind == 'bbox':
    return {'bbox': coco_mask.toBbox(mask).tolist(), 'area': area}
  # loadRes cannot measure polygons: they count by their box.
  if isinstance(result['segmentation'], list) and box is not None:
    area = box[2] * box[3]
  return {'segmentation': mask, 'area': area}


def _run_lengths(result, sizes):
  """The mask of a result in COCO's compressed form."""
  segmentation = result.get('segmentation')
  if not segmentation:
    raise UserError(
      f'A result of image {result["image_id"]} has no segmentation; score '
      f"boxes alone with kinds=('bbox',).",
      argument='kinds',
      item=result['image_id'],
    )
  image = sizes[result['image_id']]
  size = image['height'], image['width']
  if isinstance(segmentation, list):
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
  if isinstance(segmentation['counts'], list):
    return coco_mask.frPyObjects(segmentation, *size)
  return segmentation


def _summarize(tables, category_ids, kind) -> Scores:
  """COCO's means over the tables of all categories."""
  summary = cocoeval.COCOeval(iouType=kind)
  params = summary.params
  axes = (params.iouThrs, params.recThrs, category_ids)
  axes = (*axes, params.areaRng, params.maxDets)
  thresholds, recalls, *others = map(len, axes)
  precision = np.full((thresholds, recalls, *others), -1.0)
  recall = np.full((thresholds, *others), -1.0)
  matches = {}
  for part, (of_precision, of_recall, of_matches) in tables.items():
    own = np.searchsorted(category_ids, part)
    matches |= of_matches
    precision[:, :, own], recall[:, own] = of_precision, of_recall
  summary.eval = {'precision': precision, 'recall': recall}
  with contextlib.redirect_stdout(io.StringIO()):
    summary.summarize()
  return Scores(summary.stats, precision, matches)
