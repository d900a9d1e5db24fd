"""Comparison of detections with those of another program."""

import numpy as np
import pytest
from PIL import Image

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.export import check
from maskrcnn_jax.input_pipeline import resizing


def make_detections(rows, size=4):
  """Detections of one image from (y, class, score), each of 10 x 10 pixels."""
  found = {
    'boxes': np.zeros((size, 4), np.float32),
    'scores': np.zeros(size, np.float32),
    'classes': np.zeros(size, np.int32),
    'masks': np.zeros((size, 2, 2), np.float32),
    'valid': np.arange(size) < len(rows),
  }
  for row, (y, label, score) in enumerate(rows):
    found['boxes'][row] = [y, 0, y + 10, 10]
    found['classes'][row], found['scores'][row] = label, score
    found['masks'][row] = score / 2
  return found


def compare(found, wanted):
  """The figures of one batch of one image."""
  pair = [{k: v[None] for k, v in x.items()} for x in (found, wanted)]
  return check._compare([pair])


ROWS = [(0, 1, 0.9), (20, 2, 0.5), (40, 1, 0.5)]


def test_equal_detections_in_another_order():
  figures = compare(
    make_detections([ROWS[0], ROWS[2], ROWS[1]]), make_detections(ROWS)
  )
  assert figures == {
    'detections': 3,
    'missing': 0,
    'added': 0,
    'boxes': 0.0,
    'scores': 0.0,
    'masks': 0.0,
  }


def test_the_largest_differences_count():
  found, wanted = make_detections(ROWS), make_detections(ROWS)
  found['boxes'][1, 2] += 0.008
  found['scores'][0] -= 0.02
  found['masks'][2, 1, 1] += 0.1
  figures = compare(found, wanted)
  assert figures['boxes'] == pytest.approx(0.008, abs=1e-5)
  assert figures['scores'] == pytest.approx(0.02, abs=1e-6)
  assert figures['masks'] == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize(
  'rows, missing, added',
  [
    (ROWS[:2], 1, 0),
    ([*ROWS, (60, 1, 0.4)], 0, 1),
    ([ROWS[0], ROWS[1], (40, 2, 0.5)], 1, 1),  # Of another class.
    ([ROWS[0], ROWS[1], (41, 1, 0.5)], 1, 1),  # In another place.
    ([], 3, 0),
  ],
)
def test_missing_and_added_detections(rows, missing, added):
  figures = compare(make_detections(rows), make_detections(ROWS))
  assert (figures['missing'], figures['added']) == (missing, added)


def test_equal_scores_at_the_cut_may_take_each_others_place():
  found = make_detections([ROWS[0], ROWS[1], (60, 1, 0.5)], size=3)
  wanted = make_detections(ROWS, size=3)
  assert compare(found, wanted)['missing'] == 0
  assert compare(found, wanted)['added'] == 0
  # Not where rows are left.
  found = make_detections([ROWS[0], ROWS[1], (60, 1, 0.5)])
  assert compare(found, make_detections(ROWS))['missing'] == 1


def test_an_error_has_the_figures():
  figures = {**compare(make_detections(ROWS), make_detections(ROWS))}
  figures |= {'canvas': [64, 96], 'scores': float('nan')}
  with pytest.raises(UserError) as caught:
    check._check_tolerances(figures, 'onnx')
  assert caught.value.given is figures and caught.value.item == '[64, 96]'
  assert caught.value.wanted['scores'] == check.TOLERANCES['scores']
  check._check_tolerances({**figures, 'scores': 0.0}, 'onnx')


def test_drawn_images_lie_in_their_part_of_the_canvas():
  scene, empty = check.draw((64, 96), (50, 80), 'uint8')
  for image, size in (scene, empty):
    assert image.shape == (64, 96, 3) and image.dtype == np.uint8
    assert size.tolist() == [50, 80] and not image[50:].any()
    assert not image[:, 80:].any()
  assert scene[0][:50, :80].std() > 5 * empty[0][:50, :80].std()


def test_images_of_files_and_folders_are_read_in_order(tmp_path):
  (tmp_path / 'folder').mkdir()
  for number, name in enumerate(('b.png', 'folder/c.png', 'folder/a.png')):
    Image.new('RGB', (96, 48), (number, 0, 0)).save(tmp_path / name)
  (tmp_path / 'folder/notes.txt').write_text('no image')
  places = ((64, 96), (64, 96), 'uint8', resizing.ResizeOptions())
  rows = check.read([tmp_path / 'b.png', tmp_path / 'folder'], *places)
  assert [int(image[0, 0, 0]) for image, _ in rows] == [0, 2, 1]
  for image, size in rows:
    assert image.shape == (64, 96, 3) and size.tolist() == [48, 96]
  with pytest.raises(UserError) as caught:
    check.read([tmp_path / 'folder' / '..' / 'nothing'], *places)
  assert caught.value.path.endswith('nothing')
  assert caught.value.argument == 'images'
