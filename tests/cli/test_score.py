"""The verb `score`: result files of any program, with pycocotools' numbers."""

import contextlib
import io
import json
import os
import pathlib

import numpy as np
import pytest
from pycocotools import coco as coco_api
from pycocotools import cocoeval
from pycocotools import mask as coco_mask

from maskrcnn_jax.cli import main as command
from maskrcnn_jax.datasets.findings import InvalidDataError
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import coco_metrics, result_files

DATA = pathlib.Path(os.environ.get('MASKRCNN_TEST_DATA', 'missing'))
VAL = DATA / 'coco-mini' / 'annotations' / 'instances_val2017.json'
needs_data = pytest.mark.skipif(
  not DATA.is_dir(), reason='MASKRCNN_TEST_DATA is not set.'
)
SQUARE = [10.0, 10.0, 20.0, 10.0, 20.0, 20.0, 10.0, 20.0]


def score(annotations, results, *flags, expected=0):
  argv = ['score', f'--annotations={annotations}', f'--results={results}']
  assert command.main([*argv, *flags]) == expected


def perturb(truth, seed=0):
  """Results near the objects of a COCO json, some missed, some elsewhere."""
  rng = np.random.default_rng(seed)
  sizes = {i['id']: (i['height'], i['width']) for i in truth['images']}
  ids = [c['id'] for c in truth['categories']]
  results = []
  for entry in truth['annotations']:
    for _ in range(rng.integers(0, 4)):
      size = sizes[entry['image_id']]
      shift = rng.normal(0, 4, 2)
      box = [*np.add(entry['bbox'][:2], shift), *entry['bbox'][2:]]
      box = np.round(np.maximum(box, 0) * rng.normal(1, 0.02, 4), 2).tolist()
      results.append(
        {
          'image_id': entry['image_id'],
          'category_id': int(
            rng.choice([entry['category_id']] * 4 + [rng.choice(ids)])
          ),
          'bbox': box,
          'segmentation': _moved(entry['segmentation'], shift, size),
          'score': round(float(rng.beta(2, 2)), 3),  # Some are equal.
        }
      )
  return results


def _moved(segmentation, shift, size):
  """Compressed run lengths of a shifted mask."""
  if isinstance(segmentation, list):
    moved = [
      (np.reshape(x, (-1, 2)) + shift[::-1]).ravel().tolist()
      for x in segmentation
    ]
    runs = coco_mask.merge(coco_mask.frPyObjects(moved, *size))
  else:
    runs = coco_mask.frPyObjects(segmentation, *size)
    mask = np.roll(coco_mask.decode(runs), shift.astype(int), (0, 1))
    runs = coco_mask.encode(np.asfortranarray(mask))
  return {'size': [*size], 'counts': runs['counts'].decode()}


def by_pycocotools(annotations, results, kind):
  """pycocotools' own numbers of the raw files."""
  with contextlib.redirect_stdout(io.StringIO()):
    truth = coco_api.COCO(str(annotations))
    found = truth.loadRes(str(results))
    evaluation = cocoeval.COCOeval(truth, found, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
  return evaluation


def write(path, content):
  path.write_text(json.dumps(content))
  return path


def only(results, *fields):
  fields = ('image_id', 'category_id', 'score', *fields)
  return [{key: each[key] for key in fields} for each in results]


@needs_data
@pytest.mark.parametrize('seed', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_numbers_are_those_of_pycocotools(seed, tmp_path, capsys):
  results = perturb(json.loads(VAL.read_text()), seed)
  boxes = write(tmp_path / 'boxes.json', only(results, 'bbox'))
  masks = write(tmp_path / 'masks.json', only(results, 'segmentation'))
  both = write(tmp_path / 'both.json', results)
  box, mask, box_of_mask = (
    by_pycocotools(VAL, *each).stats.tolist()
    for each in ((boxes, 'bbox'), (masks, 'segm'), (masks, 'bbox'))
  )
  assert 0.1 < box[0] < 0.9 and 0.1 < mask[0] < 0.9
  for path, expected in (
    (boxes, box),
    (masks, box_of_mask + mask),
    (both, box + mask),
  ):
    output = tmp_path / path.stem
    score(VAL, path, f'--output={output}')
    metrics = json.loads((output / 'metrics.json').read_text())
    assert list(metrics.values()) == expected
    text = capsys.readouterr().out
    assert f'{len(results)} results in' in text
    assert text.count('Boxes only') == (path == boxes)
    assert f'{expected[0]:.3f}' in text
    classes = (output / 'classes.md').read_text()
    assert '| person ' in classes and 'Confusions' in classes


@needs_data
def test_classes_have_pycocotools_ap(tmp_path):
  results = write(tmp_path / 'r.json', perturb(json.loads(VAL.read_text())))
  found = coco_metrics.evaluate_classes(json.loads(results.read_text()), VAL)
  evaluation = by_pycocotools(VAL, results, 'bbox')
  for row, values in enumerate(
    np.moveaxis(evaluation.eval['precision'][:, :, :, 0, -1], 2, 0)
  ):
    expected = values.mean() if np.all(values > -1) else -1
    assert found[1].precisions['AP'][row] == pytest.approx(expected, abs=1e-12)


def make_truth(**fields):
  annotation = {
    'id': 1,
    'image_id': 1,
    'category_id': 1,
    'bbox': [10, 10, 10, 10],
    'segmentation': [SQUARE],
    'area': 100,
    'iscrowd': 0,
  }
  return {
    'images': [{'id': 1, 'height': 40, 'width': 60}],
    'annotations': [annotation | fields],
    'categories': [{'id': 1, 'name': 'cat'}],
  }


def make_result(**fields):
  result = {'image_id': 1, 'category_id': 1, 'bbox': [10, 10, 10, 10]}
  return {**result, 'score': 0.5, 'segmentation': [SQUARE], **fields}


def test_a_box_that_ends_just_outside_the_image_is_scored_as_it_is(tmp_path):
  # The IoU of the two is just below 0.5, and above it were the box clipped.
  truth = make_truth(bbox=[40, 10, 20.04, 10])
  result = make_result(bbox=[50, 10, 10.01, 10])
  annotations = write(tmp_path / 'a.json', truth)
  results = write(tmp_path / 'r.json', only([result], 'bbox'))
  expected = by_pycocotools(annotations, results, 'bbox').stats
  assert expected[1] == 0
  score(annotations, results, f'--output={tmp_path / "out"}')
  metrics = json.loads((tmp_path / 'out' / 'metrics.json').read_text())
  assert list(metrics.values()) == expected.tolist()
  truth['annotations'][0]['bbox'] = [40, 10, 21.5, 10]  # No rounding.
  write(annotations, truth)
  (entry,) = coco_metrics.load_truth(annotations)['annotations']
  assert entry['bbox'] == [40, 10, 20, 10]


def test_values_that_are_written_in_other_ways(tmp_path, capsys):
  annotations = write(tmp_path / 'a.json', make_truth())
  odd = make_result(
    image_id='1',
    category_id=1.0,
    score='0.5',
    bbox=['10', 10, 10, 10.0],
    segmentation=SQUARE,
  )
  for number, given in enumerate(
    (odd, make_result(bbox=None), make_result(segmentation=None))
  ):
    results = tmp_path / 'r.json'
    results.write_text('\ufeff' + json.dumps([given]), encoding='utf-8')
    score(annotations, results, f'--output={tmp_path / str(number)}')
    metrics = json.loads((tmp_path / f'{number}/metrics.json').read_text())
    assert metrics['eval/AP'] == pytest.approx(1.0)
    assert ('eval/mask_AP' in metrics) == (number < 2)
  assert "'score' is no plain number" in capsys.readouterr().err


def test_boxes_alone_in_the_annotations(tmp_path, capsys):
  truth = make_truth(segmentation=[])
  annotations = write(tmp_path / 'a.json', truth)
  score(annotations, write(tmp_path / 'r.json', [make_result()]))
  out = capsys.readouterr().out
  assert 'Boxes only' in out and '\nmask' not in out


@pytest.mark.parametrize(
  'fields, kind, item',
  [
    ({'image_id': 7}, 'unknown_image', 7),
    ({'image_id': [1]}, 'unknown_image', [1]),
    ({'category_id': 'cat'}, 'category_id', 1),
    ({'score': None}, 'score', 1),
    ({'score': float('nan')}, 'score', 1),
    ({'bbox': [1, 2, 3]}, 'unusable_box', 1),
    ({'bbox': [9, 9, -4, 3]}, 'unusable_box', 1),
    ({'segmentation': [[1, 2, 3]]}, 'unusable_mask', 1),
    (
      {'segmentation': {'size': [60, 40], 'counts': [2400]}},
      'unusable_mask',
      1,
    ),
  ],
)
def test_entries_that_cannot_be_scored(fields, kind, item, tmp_path):
  annotations = write(tmp_path / 'a.json', make_truth())
  results = write(tmp_path / 'r.json', [make_result(), make_result(**fields)])
  with pytest.raises(InvalidDataError) as error:
    result_files.read(results, annotations)
  (finding,) = error.value.findings
  assert finding.kind == kind and finding.message.startswith('entry 1 ')
  assert error.value.path == str(results)
  assert error.value.item == item
  score(annotations, results, expected=2)


def test_results_of_unknown_categories_are_noted(tmp_path):
  annotations = write(tmp_path / 'a.json', make_truth())
  given = [make_result(), make_result(category_id=8)]
  found = result_files.read(write(tmp_path / 'r.json', given), annotations)
  (note,) = found.notes
  assert (note.kind, note.severity) == ('unknown_category', 'warning')
  assert '1 of 2' in note.message and 'such as 8' in note.message


def test_entries_without_a_shape_and_files_of_another_kind(tmp_path):
  annotations = write(tmp_path / 'a.json', make_truth())
  boxes = only([make_result()], 'bbox')
  for content, item in (
    ({'results': []}, None),
    ([*boxes, make_result()], 1),  # Some have masks.
    (only([make_result()]), 1),
    ([1], None),
  ):
    results = write(tmp_path / 'r.json', content)
    with pytest.raises(UserError) as error:
      result_files.read(results, annotations)
    assert error.value.path == str(results) and error.value.item == item


def test_no_results_and_an_output_that_exists(tmp_path, capsys):
  annotations = write(tmp_path / 'a.json', make_truth())
  results = write(tmp_path / 'r.json', [])
  score(annotations, results)
  assert '0 results in 0 of 1 images, 1 objects' in capsys.readouterr().out
  score(annotations, results, f'--output={tmp_path}', expected=2)
  assert sorted(x.name for x in tmp_path.iterdir()) == ['a.json', 'r.json']
