"""Tracks: ids of objects that persist over the frames of a video.

The rules are those of ByteTrack (Zhang et al. 2022) and of its program. In
every frame:
1. a Kalman filter predicts the boxes of the tracks;
2. detections of a high score are matched with all tracks, by overlap times
   score;
3. those of a low score with tracks of the last frame that are still without
   one, by overlap;
4. detections of a high score that are left with tracks begun in the last
   frame, which end if they are not seen again;
5. others of a higher score begin tracks, which get an id in their second frame;
   in the first frame of the video at once;
6. tracks that were lost for too long end, and so does the younger of a lost
   track and one of this frame that cover each other.

A matching has the largest sum of (overlap - least overlap) over its pairs,
which is what the program minimizes. Objects match within their class, as in
MMDetection.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.optimize
from pycocotools import mask as coco_mask

from maskrcnn_jax.errors import UserError, invalid
from maskrcnn_jax.evaluation import coco_results
from maskrcnn_jax.inference import box_motion, views
from maskrcnn_jax.structures import Detections

# Least overlaps of the steps 3 and 4, and that of duplicates.
_LOW, _FRESH, _DUPLICATE = 0.5, 0.3, 0.85


@dataclasses.dataclass(frozen=True)
class TrackOptions:
  """Options of `Tracker`; the defaults are those of ByteTrack.

  Attributes:
    overlap: IoU of `boxes`, or of `masks`: that of a track is its last one,
      moved and resized with the predicted box.
    high_score: detections from it on are of a high score; of all classes, or by
      class id, see `views.with_score`.
    low_score: detections from it on, and below `high_score`, are of a low one.
    new_margin: score above `high_score` that begins a track.
    min_overlap: least overlap, times the score, of a detection of a high score
      and a track.
    max_lost: frames after which a lost track ends; ByteTrack takes a second.
  """

  overlap: str = 'boxes'
  high_score: float | Mapping[int | None, float] = 0.6
  low_score: float = 0.1
  new_margin: float = 0.1
  min_overlap: float = 0.1
  max_lost: int = 30

  def __post_init__(self):
    if self.overlap not in ('boxes', 'masks'):
      raise invalid('track.overlap', self.overlap, 'boxes or masks')
    if self.max_lost < 0:
      raise invalid('track.max_lost', self.max_lost, '0 or more')


@dataclasses.dataclass(eq=False)
class _Track:
  """An object that was seen at least once."""

  means: np.ndarray  # See `box_motion`.
  covariances: np.ndarray
  class_id: int
  mask: np.ndarray | None  # The last one, over its box.
  begun: int  # Numbers of frames.
  seen: int
  track_id: int = 0  # Until it was seen in two frames.

  @property
  def age(self) -> int:
    return self.seen - self.begun


class Tracker:
  """Gives ids to the detections of one video, frame by frame."""

  def __init__(self, options: TrackOptions | None = None):
    """Starts before the first frame, without tracks.

    Args:
      options: thresholds; None: those of ByteTrack.
    """
    self._options = options or TrackOptions()
    self._tracks: list[_Track] = []
    self._frame = self._last_id = 0

  def update(
    self, found: Detections, image_size: tuple[int, int] | None = None
  ) -> np.ndarray:
    """Ids of the objects in the next frame.

    Args:
      found: detections of the frame, as `Predictor` returns them, also those of
        low scores. The tracker moves on without one too, so it is called for
        every frame.
      image_size: (height, width) of the frame; needed for masks alone.

    Returns:
      `[n]` int64: ids from 1; 0 for detections of no track, or of one that was
      seen for the first time.

    Raises:
      UserError: masks are to be compared, and there are none, or no size.
    """
    self._check(found, image_size)
    self._frame += 1
    scores, least = np.asarray(found.scores), self._options.high_score
    least = views.least_scores(found.classes, least)
    high = np.flatnonzero(scores >= least)
    low = np.flatnonzero((scores < least) & (scores >= self._options.low_score))
    known = [track for track in self._tracks if track.track_id]
    fresh = [track for track in self._tracks if not track.track_id]
    self._predict(known)
    owners: dict[int, _Track] = {}

    def match(tracks, rows, least_overlap, weighted):
      """Gives rows to tracks; returns the tracks and rows that are left."""
      overlaps = self._overlaps(tracks, _rows(found, rows), image_size)
      if weighted:
        overlaps = overlaps * scores[rows]
      pairs = best_pairs(overlaps, least_overlap)
      for number, place in pairs:
        owners[int(rows[place])] = tracks[number]
      left = np.setdiff1d(np.arange(len(tracks)), [pair[0] for pair in pairs])
      rows = np.delete(rows, [place for _, place in pairs])
      return [tracks[number] for number in left], rows

    known, high = match(known, high, self._options.min_overlap, True)
    known = [track for track in known if track.seen == self._frame - 1]
    match(known, low, _LOW, False)
    gone, high = match(fresh, high, _FRESH, True)
    self._see(owners, found)
    margin = np.float32(self._options.new_margin)
    starts = high[scores[high] >= least[high] + margin]
    owners |= self._begin(starts, found)
    self._tracks += [owners[row] for row in starts.tolist()]
    self._end(gone, found, image_size)
    ids = np.zeros(len(scores), np.int64)
    alive = set(self._tracks)
    for row, track in owners.items():
      ids[row] = track.track_id if track in alive else 0
    return ids

  def _check(self, found, image_size):
    if self._options.overlap == 'boxes':
      return
    if found.masks is None:
      raise UserError(
        'tracking by masks needs a model with a mask head.',
        argument='track.overlap',
        given='masks',
      )
    if image_size is None:
      raise invalid('image_size', image_size, '(height, width) for masks')

  def _predict(self, tracks: Sequence[_Track]) -> None:
    """Moves the tracks on by a frame; those that are lost keep their height."""
    for track in tracks:
      if track.seen < self._frame - 1:
        track.means[3, 1] = 0.0
    if tracks:
      means = np.stack([track.means for track in tracks])
      covariances = np.stack([track.covariances for track in tracks])
      for track, *state in zip(tracks, *box_motion.predict(means, covariances)):
        track.means, track.covariances = state

  def _overlaps(self, tracks, found: Detections, image_size) -> np.ndarray:
    """IoU `[tracks, detections]` of those of one class, else 0."""
    if not tracks or not len(found.scores):
      return np.zeros((len(tracks), len(found.scores)))
    other = _as_detections(tracks, found)
    same = other.classes[:, None] == found.classes
    shapes = [
      each.run_lengths(image_size)
      if self._options.overlap == 'masks'
      else coco_results.to_xywh(each.boxes).astype(np.float64)
      for each in (other, found)
    ]
    overlaps = coco_mask.iou(*shapes, [0] * len(found.scores))
    return np.where(same, np.nan_to_num(overlaps), 0.0)  # No pixels: 0 / 0.

  def _see(self, owners: Mapping[int, _Track], found: Detections) -> None:
    """Updates the tracks that were found."""
    for row, track in sorted(owners.items()):
      track.means, track.covariances = box_motion.update(
        track.means, track.covariances, found.boxes[row]
      )
      track.seen = self._frame
      track.mask = None if found.masks is None else found.masks[row]
      track.track_id = track.track_id or self._new_id()

  def _new_id(self) -> int:
    self._last_id += 1
    return self._last_id

  def _begin(self, rows: np.ndarray, found: Detections) -> dict[int, _Track]:
    """New tracks by their rows."""
    means, covariances = box_motion.begin(found.boxes[rows])
    return {
      row: _Track(
        means=means[place],
        covariances=covariances[place],
        class_id=int(found.classes[row]),
        mask=None if found.masks is None else found.masks[row],
        begun=self._frame,
        seen=self._frame,
        track_id=self._new_id() if self._frame == 1 else 0,
      )
      for place, row in enumerate(rows.tolist())
    }

  def _end(self, gone: Sequence[_Track], found, image_size) -> None:
    """Drops tracks that ended; `found` says how masks are pasted."""
    oldest = self._frame - self._options.max_lost
    ended = {*gone, *(x for x in self._tracks if x.seen < oldest)}
    alive = [track for track in self._tracks if track not in ended]
    current = [track for track in alive if track.seen == self._frame]
    lost = [track for track in alive if track.seen < self._frame]
    if lost:
      covers = self._overlaps(current, _as_detections(lost, found), image_size)
      for first, second in np.argwhere(covers > _DUPLICATE):
        pair = current[first], lost[second]
        ended.add(pair[1] if pair[0].age > pair[1].age else pair[0])
    self._tracks = [track for track in alive if track not in ended]


def best_pairs(overlaps: np.ndarray, least: float) -> list[tuple[int, int]]:
  """Pairs of a row and a column, each in one pair at most.

  Args:
    overlaps: `[n, m]`.
    least: pairs must overlap more. Of all matchings the sum of (overlap -
      least) is largest; so a pair is left alone rather than made by breaking a
      better one.
  """
  gains = np.maximum(overlaps - least, 0)
  pairs = zip(*scipy.optimize.linear_sum_assignment(gains, maximize=True))
  return [(int(i), int(j)) for i, j in pairs if gains[i, j] > 0]


def _rows(found: Detections, rows: np.ndarray) -> Detections:
  masks = None if found.masks is None else found.masks[rows]
  return found.replace(
    boxes=found.boxes[rows],
    scores=found.scores[rows],
    classes=found.classes[rows],
    masks=masks,
    valid=found.valid[rows],
  )


def _as_detections(tracks: Sequence[_Track], like: Detections) -> Detections:
  """Where the tracks are expected, as detections."""
  masks = [track.mask for track in tracks]
  return like.replace(
    boxes=box_motion.to_boxes(np.stack([track.means for track in tracks])),
    scores=np.ones(len(tracks), np.float32),
    classes=np.array([track.class_id for track in tracks]),
    masks=None if masks[0] is None else np.stack(masks),
    valid=np.ones(len(tracks), bool),
  )
