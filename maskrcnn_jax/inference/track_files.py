"""Files of results of videos: COCO-video, YouTube-VIS, MOTS.

What they say waits in a database on the disk of the output, since some are in
the order of frames and others in that of tracks, and memory must not grow with
the length of a video.
"""

import contextlib
import dataclasses
import itertools
import json
import pathlib
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn_jax import files
from maskrcnn_jax.inference import browse

# Classes of MOTS: https://www.vision.rwth-aachen.de/page/mots
_MOTS_CLASSES = {'car': 1, 'pedestrian': 2, 'person': 2}
_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE frames (image_id INTEGER PRIMARY KEY, entry TEXT, results TEXT);
CREATE TABLE objects (
  video_id INTEGER, frame_id INTEGER, image_id INTEGER, track_id INTEGER,
  number INTEGER, category_id INTEGER, score REAL, box TEXT, area REAL,
  height INTEGER, width INTEGER, counts TEXT);
CREATE INDEX tracks ON objects (video_id, track_id, frame_id);
"""


@dataclasses.dataclass(frozen=True)
class FrameResult:
  """What is known of a frame.

  Attributes:
    entry: of the image in a COCO-video JSON; has `id`, `video_id`, `frame_id`
      and `frame_number`.
    results: all COCO results, see `coco_results.image_results`.
    ids: `[n]` of the tracks of these results; None without tracking.
  """

  entry: Mapping
  results: Sequence[Mapping]
  ids: np.ndarray | None


class TrackStore:
  """Results of the frames of all clips, until their files are written."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder

  def __enter__(self):
    self._stack = contextlib.ExitStack()
    hidden = self._stack.enter_context(
      tempfile.TemporaryDirectory('.unfinished', '.results-', self._folder)
    )
    with _disk_errors(self._folder):
      self._base = sqlite3.connect(f'{hidden}/results.sqlite')
      self._base.executescript(_TABLES)
    self._stack.callback(self._base.close)
    return self

  def __exit__(self, *unused_error):
    self._stack.close()

  def add(self, frame: FrameResult) -> None:
    """Adds a frame."""
    entry, rows = frame.entry, []
    for track_id, result in zip(
      itertools.repeat(0) if frame.ids is None else frame.ids.tolist(),
      frame.results,
    ):
      if track_id:
        box, mask = result['bbox'], result.get('segmentation')
        area = box[2] * box[3] if mask is None else float(coco_mask.area(mask))
        counts = None if mask is None else mask['counts']
        places = (entry[x] for x in ('video_id', 'frame_id', 'id'))
        numbers = entry['frame_number'], result['category_id'], result['score']
        size = entry['height'], entry['width']
        rows.append(
          (*places, track_id, *numbers, json.dumps(box), area, *size, counts)
        )
    texts = json.dumps(entry), json.dumps(frame.results)[1:-1]
    with _disk_errors(self._folder):
      self._base.execute(
        'INSERT INTO frames VALUES (?, ?, ?)', (entry['id'], *texts)
      )
      marks = ', '.join('?' * 12)
      self._base.executemany(f'INSERT INTO objects VALUES ({marks})', rows)

  def _select(self, query, *values) -> Iterator[tuple]:
    with _disk_errors(self._folder):
      yield from self._base.execute(query, values)

  def num_tracks(self) -> int:
    """Number of tracks of all clips."""
    query = (
      'SELECT COUNT(*) FROM (SELECT DISTINCT video_id, track_id FROM objects)'
    )
    return next(self._select(query))[0]

  def write(
    self,
    videos: Sequence[Mapping],
    categories: Sequence[Mapping],
    names: Iterable[str],
  ) -> None:
    """Writes files, each of which appears whole.

    Args:
      videos: entries of a COCO-video JSON, with `id`, `name` and `length`.
      categories: entries of a COCO JSON.
      names: of the files, relative to the folder.
    """
    for name in names:
      if name.startswith('mots/'):
        number = [f'mots/{video["name"]}.txt' for video in videos].index(name)
        parts = self._mots(videos[number]['id'], categories)
      elif name == 'youtube_vis.json':
        parts = self._youtube_vis(videos)
      elif name == 'detections.json':
        texts = (row[0] for row in self._select(_RESULTS))
        parts = ['[', browse.separated(texts, ', '), ']\n']
      else:
        parts = self._coco(videos, categories, name == 'tracks.json')
      with (
        files.replaced(self._folder / name) as unfinished,
        unfinished.open('w', encoding='utf-8') as file,
      ):
        for part in parts:
          file.writelines([part] if isinstance(part, str) else part)

  def _coco(self, videos, categories, with_tracks) -> Iterator:
    yield f'{{"videos": {json.dumps(videos)},\n"images": [\n'
    rows = self._select('SELECT entry FROM frames ORDER BY image_id')
    yield browse.separated((row[0] for row in rows), ',\n')
    if with_tracks:
      yield '\n],\n"annotations": [\n'
      yield browse.separated(self._annotations(), ',\n')
    yield f'\n],\n"categories": {json.dumps(categories)}}}\n'

  def _annotations(self) -> Iterator[str]:
    rows = self._select(
      'SELECT image_id, video_id, track_id, category_id, score, box, area,'
      ' height, width, counts FROM objects ORDER BY image_id, track_id'
    )
    for number, (*row, box, area, height, width, counts) in enumerate(rows, 1):
      names = 'image_id', 'video_id', 'instance_id', 'category_id', 'score'
      entry = {'id': number, **dict(zip(names, row)), 'iscrowd': 0}
      entry |= {'bbox': json.loads(box), 'area': area}
      if counts is not None:
        entry['segmentation'] = {'size': [height, width], 'counts': counts}
      yield json.dumps(entry)

  def _youtube_vis(self, videos) -> Iterator:
    """A list of tracks, each with run lengths or null for every frame."""
    length = {video['id']: video['length'] for video in videos}
    tracks = self._select(
      'SELECT video_id, track_id, MIN(category_id), AVG(score) FROM objects'
      ' GROUP BY video_id, track_id ORDER BY video_id, track_id'
    )
    yield '[\n'
    for number, (video_id, track_id, category_id, score) in enumerate(tracks):
      head = {'video_id': video_id, 'score': score, 'category_id': category_id}
      yield (
        ',\n' * (number > 0) + json.dumps(head)[:-1] + ', "segmentations": ['
      )
      texts = self._segmentations(video_id, track_id, length[video_id])
      yield browse.separated(texts, ', ')
      yield ']}'
    yield '\n]\n'

  def _segmentations(self, video_id, track_id, length) -> Iterator[str]:
    rows = self._select(
      'SELECT frame_id, height, width, counts FROM objects'
      ' WHERE video_id = ? AND track_id = ? ORDER BY frame_id',
      *(video_id, track_id),
    )
    following = next(rows, None)
    for frame_id in range(length):
      if following is None or following[0] > frame_id:
        yield 'null'
        continue
      _, height, width, counts = following
      yield json.dumps({'size': [height, width], 'counts': counts})
      following = next(rows, None)

  def _mots(self, video_id, categories) -> Iterator[str]:
    """Lines of a frame, an id, a class, the size and run lengths.

    In MOTS no two masks share a pixel: the one of the higher score has it.
    """
    label_of = mots_classes(categories)
    numbers, counts = {}, {}
    for track_id, category_id in self._select(
      'SELECT DISTINCT track_id, category_id FROM objects WHERE video_id = ?'
      ' ORDER BY track_id',
      video_id,
    ):
      label = label_of(category_id)
      counts[label] = numbers[track_id] = counts.get(label, 0) + 1
    # Ids of classes stay apart also where one has a thousand objects.
    base = max(1000, 10 ** len(str(max(counts.values(), default=0))))
    rows = self._select(
      'SELECT number, track_id, category_id, height, width, counts'
      ' FROM objects WHERE video_id = ? ORDER BY number, score DESC, track_id',
      video_id,
    )
    rows = (row for row in rows if label_of(row[2]) is not None)
    for number, group in itertools.groupby(rows, key=lambda row: row[0]):
      taken = None
      for _, track_id, category_id, height, width, text in group:
        mask = coco_mask.decode({'size': [height, width], 'counts': text})
        taken = np.zeros_like(mask) if taken is None else taken
        mask &= 1 - taken
        taken |= mask
        if mask.any():
          runs = coco_mask.encode(np.asfortranarray(mask))['counts'].decode()
          label = label_of(category_id)
          track = label * base + numbers[track_id]
          yield f'{number} {track} {label} {height} {width} {runs}\n'


_RESULTS = "SELECT results FROM frames WHERE results != '' ORDER BY image_id"


def mots_classes(
  categories: Sequence[Mapping],
) -> Callable[[int], int | None]:
  """Gives MOTS's number of a category id, or None for one that it has not.

  If the model knows no cars and pedestrians, the ids stay as they are.
  """
  names = {each['id']: each['name'].lower() for each in categories}
  known = {
    category_id: _MOTS_CLASSES[name]
    for category_id, name in names.items()
    if name in _MOTS_CLASSES
  }
  return known.get if known else int


@contextlib.contextmanager
def _disk_errors(folder) -> Iterator[None]:
  """Errors of the database, such as that of a full disk, with the folder."""
  try:
    yield
  except sqlite3.OperationalError as error:
    raise OSError(
      0, f'results cannot be stored ({error})', str(folder)
    ) from error
