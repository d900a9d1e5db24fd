"""Files of tracks, against hand-made masks."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskrcnn_jax.inference.track_files import FrameResult, TrackStore

SIZE = 4, 6
CATEGORIES = [{'id': 3, 'name': 'Car'}, {'id': 1, 'name': 'person'}]
VIDEOS = [
  {'id': 1, 'name': 'a', 'length': 3},
  {'id': 2, 'name': 'b', 'length': 1},
]


def runs(*pixels):
  mask = np.zeros(SIZE, np.uint8, order='F')
  mask[tuple(np.transpose(pixels))] = 1
  counts = coco_mask.encode(mask)['counts'].decode()
  return {'size': [*SIZE], 'counts': counts}


LEFT = runs((0, 0), (1, 0), (1, 1))
RIGHT = runs((1, 1), (1, 2))  # Shares a pixel with LEFT.


def result(mask, category_id, score):
  box = coco_mask.toBbox(mask).tolist()
  return {
    'category_id': category_id,
    'bbox': box,
    'score': score,
    'segmentation': mask,
  }


def frame(image_id, video_id, frame_id, results, ids):
  entry = {
    'id': image_id,
    'video_id': video_id,
    'frame_id': frame_id,
    'frame_number': 2 * frame_id,
    'height': SIZE[0],
    'width': SIZE[1],
  }
  results = [each | {'image_id': image_id} for each in results]
  return FrameResult(entry, results, None if ids is None else np.array(ids))


FRAMES = [
  frame(1, 1, 0, [result(LEFT, 3, 0.9), result(RIGHT, 1, 0.8)], [1, 2]),
  frame(2, 1, 1, [result(RIGHT, 1, 0.3)], [0]),
  frame(3, 1, 2, [result(RIGHT, 3, 0.5), result(LEFT, 1, 0.4)], [1, 2]),
  frame(4, 2, 0, [result(LEFT, 3, 0.7)], [1]),
]


def write(folder, names, frames=FRAMES, categories=CATEGORIES):
  with TrackStore(folder) as store:
    for each in frames:
      store.add(each)
    store.write(VIDEOS, categories, names)
    count = store.num_tracks()
  texts = {name: (folder / name).read_text() for name in names}
  # The database is gone.
  files = [x for x in folder.rglob('*') if x.is_file()]
  assert len(files) == len(names)
  return count, texts


def test_coco_video(tmp_path):
  names = ['detections.json', 'images.json', 'tracks.json']
  count, texts = write(tmp_path, names)
  assert count == 3
  detections, images, tracks = (json.loads(texts[name]) for name in names)
  assert detections == [x for each in FRAMES for x in each.results]
  entries = [dict(each.entry) for each in FRAMES]
  header = {'videos': VIDEOS, 'images': entries, 'categories': CATEGORIES}
  assert images == header
  annotations = tracks.pop('annotations')
  assert tracks == header
  assert [each['id'] for each in annotations] == [1, 2, 3, 4, 5]
  keys = 'image_id', 'video_id', 'instance_id', 'category_id', 'score'
  assert [tuple(each[key] for key in keys) for each in annotations] == [
    (1, 1, 1, 3, 0.9),
    (1, 1, 2, 1, 0.8),
    (3, 1, 1, 3, 0.5),
    (3, 1, 2, 1, 0.4),
    (4, 2, 1, 3, 0.7),
  ]
  assert annotations[0]['segmentation'] == LEFT
  assert annotations[0]['bbox'] == [0, 0, 2, 2]
  assert (annotations[0]['area'], annotations[0]['iscrowd']) == (3, 0)


def test_youtube_vis(tmp_path):
  _, texts = write(tmp_path, ['youtube_vis.json'])
  tracks = json.loads(texts['youtube_vis.json'])
  scores = [each.pop('score') for each in tracks]
  np.testing.assert_allclose(scores, [0.7, 0.6, 0.7])
  assert tracks == [
    {'video_id': 1, 'category_id': 3, 'segmentations': [LEFT, None, RIGHT]},
    {'video_id': 1, 'category_id': 1, 'segmentations': [RIGHT, None, LEFT]},
    {'video_id': 2, 'category_id': 3, 'segmentations': [LEFT]},
  ]


def test_mots_has_no_pixel_twice(tmp_path):
  _, texts = write(tmp_path, ['mots/a.txt', 'mots/b.txt'])
  # Numbers of the video's frames; cars are 1 and pedestrians 2; the pixel that
  # two masks share belongs to the one of the higher score.
  rest, part = runs((1, 2)), runs((0, 0), (1, 0))
  assert texts['mots/a.txt'].splitlines() == [
    f'0 1001 1 4 6 {LEFT["counts"]}',
    f'0 2001 2 4 6 {rest["counts"]}',
    f'4 1001 1 4 6 {RIGHT["counts"]}',
    f'4 2001 2 4 6 {part["counts"]}',
  ]
  assert texts['mots/b.txt'] == f'0 1001 1 4 6 {LEFT["counts"]}\n'


@pytest.mark.parametrize('names', [[], ['cell', 'tree']])
def test_mots_of_other_classes_has_their_ids(tmp_path, names):
  categories = [{'id': x, 'name': name} for x, name in zip((3, 1), names)]
  _, texts = write(tmp_path, ['mots/b.txt'], categories=categories)
  assert texts['mots/b.txt'].split()[:3] == ['0', '3001', '3']


def test_ids_of_mots_stay_apart_with_many_tracks(tmp_path):
  mask = runs((0, 0))
  frames = [frame(i, 1, i, [result(mask, 1, 0.5)], [i]) for i in range(1, 1002)]
  frames.append(frame(1002, 1, 1002, [result(mask, 3, 0.5)], [1002]))
  _, texts = write(tmp_path, ['mots/a.txt'], frames)
  lines = texts['mots/a.txt'].splitlines()
  assert lines[1000].split()[1:3] == ['21001', '2']
  assert lines[1001].split()[1:3] == ['10001', '1']


def test_without_tracks_or_masks(tmp_path):
  bare = {'category_id': 3, 'bbox': [1.0, 1, 2, 2], 'score': 0.9}
  frames = [frame(1, 1, 0, [bare], None), frame(2, 1, 1, [], [])]
  count, texts = write(tmp_path, ['detections.json', 'tracks.json'], frames)
  assert count == 0
  assert json.loads(texts['detections.json']) == [bare | {'image_id': 1}]
  assert json.loads(texts['tracks.json'])['annotations'] == []
