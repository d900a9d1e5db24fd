"""Tracker: hand-made scenes, and an oracle written from ByteTrack's steps."""

import itertools

import numpy as np
import pytest

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.inference import box_motion
from maskrcnn_jax.inference.tracking import Tracker, TrackOptions, best_pairs
from maskrcnn_jax.structures import Detections


def frame(*objects, classes=None, masks=None):
  """Detections of rows (y1, x1, y2, x2, score)."""
  rows = np.array(objects, np.float32).reshape(-1, 5)
  if classes is None:
    classes = [1] * len(rows)
  return Detections(
    boxes=rows[:, :4],
    scores=rows[:, 4],
    classes=np.array(classes, np.int32),
    masks=masks,
    valid=np.ones(len(rows), bool),
  )


def square(x, y=0, side=20, score=0.9):
  return y, x, y + side, x + side, score


def track(frames, image_size=None, **options):
  tracker = Tracker(TrackOptions(**options))
  return [tracker.update(found, image_size).tolist() for found in frames]


# The Kalman filter.


def oracle_noise(height, position, velocity, aspect):
  deviations = [height * position] * 4 + [height * velocity] * 4
  deviations[2], deviations[6] = aspect
  return np.diag(np.square(deviations))


class OracleFilter:
  """The filter with one state (x, y, a, h and velocities) of 8 numbers."""

  def __init__(self, box):
    z = self.measure(box)
    self.mean = np.concatenate([z, np.zeros(4)])
    self.covariance = oracle_noise(z[3], 2 / 20, 10 / 160, (1e-2, 1e-5))
    self.motion = np.eye(8) + np.eye(8, k=4)
    self.seen = np.eye(4, 8)

  @staticmethod
  def measure(box):
    y1, x1, y2, x2 = np.asarray(box, float)
    return np.array(
      [(x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / (y2 - y1), y2 - y1]
    )

  def predict(self):
    noise = oracle_noise(self.mean[3], 1 / 20, 1 / 160, (1e-2, 1e-5))
    self.mean = self.motion @ self.mean
    self.covariance = self.motion @ self.covariance @ self.motion.T + noise

  def update(self, box):
    noise = oracle_noise(self.mean[3], 1 / 20, 0, (1e-1, 0))[:4, :4]
    projected = self.seen @ self.covariance @ self.seen.T + noise
    gain = self.covariance @ self.seen.T @ np.linalg.inv(projected)
    self.mean = self.mean + gain @ (self.measure(box) - self.mean[:4])
    self.covariance = self.covariance - gain @ projected @ gain.T

  def box(self):
    x, y, a, h = self.mean[:4]
    return np.array([y - h / 2, x - a * h / 2, y + h / 2, x + a * h / 2])


def test_states_by_hand():
  means, covariances = box_motion.begin(np.array([0.0, 10, 40, 30]))
  # Centre (20, 20), half as wide as high.
  np.testing.assert_allclose(means[:, 0], [20, 20, 0.5, 40])
  np.testing.assert_allclose(covariances[0], [[4.0**2, 0], [0, 2.5**2]])
  np.testing.assert_allclose(covariances[2], [[1e-4, 0], [0, 1e-10]])
  means, covariances = box_motion.predict(means, covariances)
  np.testing.assert_allclose(
    covariances[0],
    [[16 + 6.25 + 2.0**2, 6.25], [6.25, 6.25 + 0.25**2]],
  )
  # Measured 8 pixels to the right: 26.25 / (26.25 + 4) of it is believed.
  means, _ = box_motion.update(means, covariances, np.array([0.0, 18, 40, 38]))
  np.testing.assert_allclose(means[0], [20 + 8 * 26.25 / 30.25, 50 / 30.25])
  np.testing.assert_allclose(
    box_motion.to_boxes(box_motion.begin(np.array([[1.0, 2, 3, 7]]))[0]),
    [[1, 2, 3, 7]],
  )


def test_filter_is_one_of_8_numbers():
  rng = np.random.default_rng(0)
  starts = rng.uniform(20, 90, (5, 2))
  boxes = np.concatenate([starts, starts + rng.uniform(8, 40, (5, 2))], 1)
  oracles = [OracleFilter(box) for box in boxes]
  state = box_motion.begin(boxes)
  for _ in range(12):
    state = box_motion.predict(*state)
    boxes = boxes + rng.normal(1, 1, (5, 4))
    state = box_motion.update(*state, boxes)
    for oracle, box in zip(oracles, boxes):
      oracle.predict()
      oracle.update(box)
  means, covariances = state
  for row, oracle in enumerate(oracles):
    np.testing.assert_allclose(means[row].T.ravel(), oracle.mean)
    full = np.zeros((8, 8))
    for i in range(4):
      full[np.ix_([i, i + 4], [i, i + 4])] = covariances[row, i]
    np.testing.assert_allclose(full, oracle.covariance, atol=1e-12)


def test_flat_boxes_have_finite_states():
  state = box_motion.begin(np.array([[5.0, 5, 5, 9]]))
  for _ in range(3):
    state = box_motion.update(*box_motion.predict(*state), np.zeros((1, 4)))
  assert all(np.isfinite(x).all() for x in state)
  assert np.isfinite(box_motion.to_boxes(state[0])).all()


# Matching.


def oracle_pairs(costs, limit):
  """Of all partial matchings that of the least cost, by trying all of them.

  A row or a column without a partner costs half of the limit.
  """
  rows, columns = costs.shape
  best = (rows + columns) * limit / 2, []
  for count in range(1, min(rows, columns) + 1):
    for chosen in itertools.combinations(range(rows), count):
      for others in itertools.permutations(range(columns), count):
        cost = costs[chosen, others].sum()
        cost += (rows + columns - 2 * count) * limit / 2
        if cost < best[0]:
          best = cost, [*zip(chosen, others)]
  return best[1]


def test_a_good_pair_is_not_broken_for_a_bad_one():
  # 0.25 + 0.7 is more than 0.9 + 0, but less above the limit.
  assert best_pairs(np.array([[0.9, 0.25], [0.7, 0.0]]), 0.1) == [(0, 0)]
  both = np.array([[0.9, 0.8], [0.8, 0.3]])
  assert best_pairs(both, 0.1) == [(0, 1), (1, 0)]
  assert best_pairs(both, 0.95) == []
  assert best_pairs(np.zeros((0, 3)), 0.1) == []


@pytest.mark.parametrize('shape', [(3, 3), (2, 5), (5, 2), (4, 4)])
def test_matching_is_the_cheapest_of_all(shape):
  rng = np.random.default_rng(sum(shape))
  for _ in range(20):
    overlaps, least = rng.uniform(0, 1, shape), rng.choice([0.1, 0.5, 0.7])
    assert best_pairs(overlaps, least) == oracle_pairs(1 - overlaps, 1 - least)


# Tracks.


def test_ids_persist_through_a_gap_of_two_frames():
  frames = [frame(square(4 * i), square(4 * i, y=60)) for i in range(8)]
  frames[4] = frames[5] = frame(square(16, y=60))
  ids = track(frames)
  assert ids[:4] == [[1, 2]] * 4
  assert ids[4:6] == [[2], [2]]
  assert ids[6:] == [[1, 2]] * 2


def test_ids_follow_objects_whatever_their_order():
  a, b = square(0), square(60)
  assert track([frame(a, b), frame(b, a)]) == [[1, 2], [2, 1]]


def test_a_later_object_gets_its_id_in_its_second_frame():
  a, b = square(0), square(60)
  once = square(200)
  frames = [frame(a), frame(a, b, once), frame(a, b)]
  # What was seen once uses up no id.
  later = square(120)
  frames += [frame(a, b, later)] * 2
  assert track(frames) == [[1], [1, 0, 0], [1, 2], [1, 2, 0], [1, 2, 3]]


def test_low_scores_continue_tracks_but_begin_none():
  good, poor = square(0), square(0, score=0.2)
  assert track([frame(good), frame(poor), frame(good)]) == [[1], [1], [1]]
  assert track([frame(poor)] * 3) == [[0]] * 3
  # Below the low score there is nothing.
  bad = square(0, score=0.05)
  assert track([frame(good), frame(bad)]) == [[1], [0]]
  # A high score that is not high enough to begin.
  fair = square(0, score=0.65)
  assert track([frame(fair)] * 2) == [[0]] * 2
  assert track([frame(fair)] * 2, new_margin=0.0) == [[1]] * 2


def test_low_scores_do_not_find_lost_tracks():
  good, poor = square(0), square(0, score=0.2)
  frames = [frame(good), frame(), frame(poor), frame(good)]
  assert track(frames) == [[1], [], [0], [1]]


def test_lost_tracks_end():
  here, gap = frame(square(0)), frame()
  frames = [here, *[gap] * 3, here, here]
  assert track(frames, max_lost=4)[-2:] == [[1], [1]]
  assert track(frames, max_lost=3)[-2:] == [[1], [1]]
  assert track(frames, max_lost=2)[-2:] == [[0], [2]]


def test_objects_match_within_their_class():
  a = square(0)
  frames = [frame(a, classes=[1]), frame(a, classes=[2]), frame(a, classes=[1])]
  assert track(frames) == [[1], [0], [1]]


def test_thresholds_by_class():
  a, b = square(0, score=0.4), square(60, score=0.4)
  frames = [frame(a, b, classes=[1, 2])] * 2
  scores = {1: 0.3, None: 0.6}
  assert track(frames, high_score=scores) == [[1, 0]] * 2


def test_the_younger_of_two_tracks_on_one_object_ends():
  # One object stays and is lost; the other, of a low score and so never matched
  # with a lost track, slides onto its place in steps of 4 pixels.
  slide = [frame(square(x, score=0.5)) for x in range(28, -1, -4)]
  still, moving = square(0), [square(40), square(36), square(32)]
  late, early = frame(moving[1]), frame(still)
  both = frame(still, moving[2])
  # The one that stays was seen for longer: its id comes back.
  frames = [*[early] * 12, frame(still, moving[1]), both, *slide, frame(still)]
  ids = track(frames)
  assert ids[11:14] == [[1], [1, 0], [1, 2]]
  assert ids[14:21] == [[2]] * 7
  assert ids[21:] == [[0], [1]]
  # For a shorter time: it ends, and the other has taken its place.
  frames = [frame(moving[0]), late, both, both, *slide, frame(still)]
  ids = track(frames)
  assert ids[:4] == [[1], [1], [0, 1], [2, 1]]
  assert ids[4:] == [[1]] * 9


def diagonals():
  """Masks of two crossing bars that share one box."""
  bar = np.eye(28, dtype=np.float32)
  bar = np.clip(sum(np.roll(bar, k, 1) for k in (-2, -1, 0, 1, 2)), 0, 1)
  return np.stack([bar, bar[:, ::-1]])


def test_masks_tell_objects_in_one_box_apart():
  masks, box = diagonals(), square(10, 10, side=40)
  first = frame(box, box, masks=masks)
  second = frame(box, box, masks=masks[::-1])
  assert track([first, second], (64, 64), overlap='masks') == [[1, 2], [2, 1]]
  # Boxes cannot.
  assert track([first, second], (64, 64)) == [[1, 2], [1, 2]]


def test_wrong_arguments_are_named():
  with pytest.raises(UserError) as info:
    TrackOptions(overlap='points')
  assert info.value.argument == 'track.overlap'
  with pytest.raises(UserError) as info:
    track([frame(square(0))], (64, 64), overlap='masks')
  assert (info.value.argument, info.value.given) == ('track.overlap', 'masks')
  with pytest.raises(UserError) as info:
    track([frame(square(0), masks=diagonals()[:1])], overlap='masks')
  assert info.value.argument == 'image_size'


# An oracle of the whole tracker.


def oracle_iou(a, b):
  height = min(a[2], b[2]) - max(a[0], b[0])
  width = min(a[3], b[3]) - max(a[1], b[1])
  if height <= 0 or width <= 0:
    return 0.0
  areas = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
  return height * width / (areas - height * width)


class OracleTrack(OracleFilter):
  def __init__(self, box, label, number):
    super().__init__(box)
    self.label, self.start, self.last = label, number, number
    self.state, self.id = 'tracked', None


class OracleTracker:
  """ByteTrack step by step, with lists of tracked and lost tracks."""

  def __init__(self, max_lost):
    self.max_lost, self.number, self.count = max_lost, 0, 0
    self.tracked, self.lost = [], []

  def costs(self, tracks, found, fused):
    table = np.ones((len(tracks), len(found)))
    for (i, one), (j, (box, score, label)) in itertools.product(
      enumerate(tracks), enumerate(found)
    ):
      if one.label == label:
        table[i, j] = 1 - oracle_iou(one.box(), box) * (score if fused else 1)
    return table

  def next_id(self):
    self.count += 1
    return self.count

  def take(self, tracks, found, limit, fused):
    """Matches; returns (track, detection) pairs and what is left of both."""
    pairs = oracle_pairs(self.costs(tracks, found, fused), limit)
    left = [x for i, x in enumerate(tracks) if i not in dict(pairs)]
    other = [x for j, x in enumerate(found) if j not in {b for _, b in pairs}]
    return [(tracks[i], found[j]) for i, j in pairs], left, other

  def update(self, found):
    self.number += 1
    high = [x for x in found if x[1] >= 0.6]
    low = [x for x in found if 0.1 <= x[1] < 0.6]
    confirmed = [x for x in self.tracked if x.id]
    unconfirmed = [x for x in self.tracked if not x.id]
    pool = confirmed + self.lost
    for one in pool:
      if one.state == 'lost':
        one.mean[7] = 0
      one.predict()
    first, pool, high = self.take(pool, high, 0.9, True)
    pool = [x for x in pool if x.state == 'tracked']
    second, unseen, _ = self.take(pool, low, 0.5, False)
    third, dropped, high = self.take(unconfirmed, high, 0.7, True)
    seen = first + second + third
    order = [id(x) for x in found]
    seen.sort(key=lambda pair: order.index(id(pair[1])))
    for one, detection in seen:
      one.update(detection[0])
      one.state, one.last = 'tracked', self.number
      one.id = one.id or self.next_id()
    for detection in high:
      if detection[1] >= 0.7:
        new = OracleTrack(detection[0], detection[2], self.number)
        new.id = self.next_id() if self.number == 1 else None
        seen.append((new, detection))
    self.tracked = [one for one, _ in seen]
    refound = {id(x) for x in self.tracked} | {id(x) for x in dropped}
    self.lost = [
      x
      for x in self.lost
      if id(x) not in refound and self.number - x.last <= self.max_lost
    ]
    for one in unseen:
      one.state = 'lost'
      self.lost.append(one)
    self.prune()
    kept = {id(x) for x in self.tracked}
    ids = {id(d): one.id or 0 for one, d in seen if id(one) in kept}
    return [ids.get(x, 0) for x in order]

  def prune(self):
    bad = set()
    for a, b in itertools.product(self.tracked, self.lost):
      if a.label == b.label and oracle_iou(a.box(), b.box()) > 0.85:
        older = a.last - a.start > b.last - b.start
        bad.add(id(b if older else a))
    self.tracked = [x for x in self.tracked if id(x) not in bad]
    self.lost = [x for x in self.lost if id(x) not in bad]


def draw_scene(rng, num_frames, num_objects=4):
  """Detections of objects that move, jump, vanish and score as they like."""
  centers = rng.uniform(20, 80, (num_objects, 2))
  speeds = rng.normal(0, 2, (num_objects, 2))
  sides = rng.uniform(15, 30, (num_objects, 2))
  labels = rng.integers(1, 3, num_objects)
  growth = rng.uniform(0.97, 1.03, (num_objects, 2))
  for _ in range(num_frames):
    centers = centers + speeds + rng.normal(0, 0.7, centers.shape)
    sides = sides * growth
    jump = rng.random(num_objects) < 0.03
    centers[jump] = rng.uniform(20, 80, (jump.sum(), 2))
    scores = rng.choice(
      [0.05, 0.3, 0.65, 0.95], num_objects, p=[0.1, 0.2, 0.2, 0.5]
    )
    scores = scores + rng.uniform(-0.04, 0.04, num_objects)
    shown = np.flatnonzero(rng.random(num_objects) < 0.85)
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], 1)
    rows = np.concatenate([boxes, scores[:, None]], 1)
    yield frame(*rows[shown], classes=labels[shown])


@pytest.mark.parametrize('seed', range(4))
def test_ids_equal_those_of_the_steps(seed):
  rng = np.random.default_rng(seed)
  tracker, oracle = Tracker(TrackOptions(max_lost=5)), OracleTracker(5)
  most = 0
  for found in draw_scene(rng, 80):
    rows = zip(found.boxes.astype(float), found.scores, found.classes)
    rows = [(box, float(score), int(label)) for box, score, label in rows]
    expected = oracle.update(rows)
    assert tracker.update(found).tolist() == expected
    most = max([most, *expected])
  assert most > 4  # Some tracks ended and others began.
