"""Detection in videos: annotated videos, results and tracks.

The output holds `videos/NAME.mp4`, `detections.json` (COCO results of all
detections), `images.json` (videos, frames with their times, and classes), with
tracks also `tracks.json` (COCO-video) and on request `youtube_vis.json` and
`mots/NAME.txt`, and `predict.json`: the options, and all names that were
written. A file is written when all of it is known, so none is half done.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tqdm

from maskrcnn_jax import visualize
from maskrcnn_jax.checkpoints import score_thresholds
from maskrcnn_jax.datasets import categories
from maskrcnn_jax.distributed import processes
from maskrcnn_jax.errors import UserError, invalid
from maskrcnn_jax.evaluation import coco_results
from maskrcnn_jax.inference import clips as clips_lib
from maskrcnn_jax.inference import video, views
from maskrcnn_jax.inference.clips import Clip
from maskrcnn_jax.inference.output_folder import OutputFolder
from maskrcnn_jax.inference.predictor import Predictor
from maskrcnn_jax.inference.track_files import FrameResult, TrackStore
from maskrcnn_jax.inference.tracking import Tracker, TrackOptions
from maskrcnn_jax.inference.video import Frame
from maskrcnn_jax.structures import Detections

# Files of tracks that `save` may ask for.
KINDS = ('youtube_vis', 'mots')
# Frames that are drawn behind those being detected.
_WORKERS = min(os.cpu_count() or 1, 8)


def predict(
  source,
  images: Sequence[str],
  output: str,
  min_score: float | str | None = None,
  every: int = 1,
  track: str | None = None,
  save: Sequence[str] = (),
  compilation_cache: str = processes.COMPILATION_CACHE,
  exif: str | None = None,
  value_range: tuple[float, float] | None = None,
  **options,
) -> None:
  """Detects objects in videos and writes the output described above.

  Args:
    source: see `Predictor`.
    images: see `clips.find`.
    output: folder to write; files of an earlier run in it are replaced.
    min_score: detections below are not drawn (0.5); with tracks it is
      `TrackOptions.high_score` (0.6), and all tracks are drawn. `'auto'`: the
      recommended score of their class, see `checkpoints.score_thresholds`.
    every: detect in every n-th frame.
    track: find tracks, by the overlap of `boxes` or of `masks`.
    save: some of `KINDS`.
    compilation_cache: see `predict.predict`.
    exif: see `clips.find`, also for `value_range`.
    **options: of `Predictor`.

  Raises:
    FileNotFoundError: there are no such files, or no checkpoint.
    FileExistsError: the output holds files that `predict` did not write.
    UserError: a file is no whole video, see `clips.find` and `video.read`; an
      argument is wrong.
  """
  _check_save(save, track)
  video.import_av()
  if min_score is None:
    min_score = 0.5 if track is None else TrackOptions.high_score
  scores = score_thresholds.read(source) if min_score == 'auto' else min_score
  clips = clips_lib.find(images, output, exif, value_range)
  names = _names(clips, track, save)
  folder = OutputFolder(output, names)
  summary = {
    'checkpoint': os.fspath(source),
    'min_score': min_score,
    'every': every,
    'track': track,
    'save': list(save),
    **json.loads(json.dumps(options, default=dataclasses.asdict)),
    'complete': False,
  }
  processes.enable_compilation_cache(compilation_cache)
  predictor = Predictor(source, **options)
  folder.claim(summary)
  with TrackStore(folder.path) as store:
    run = _Run(predictor, folder.path, store, scores, every, track, tuple(save))
    run.detect(clips)
    texts = [name for name in names if not name.startswith('videos/')]
    entries = categories.entries(predictor.class_names, predictor.category_ids)
    store.write(run.videos, entries, texts)
    num_tracks = store.num_tracks()
  folder.finish(summary | {'complete': True})
  tracks = '' if track is None else f' and {num_tracks} tracks'
  print(
    f'{len(clips)} videos with {run.num_frames} frames{tracks}: '
    f'see {folder.path / "videos"}'
  )


def _check_save(save, track):
  if {*save} - {*KINDS}:
    wanted = f'some of {", ".join(KINDS)} for a video'
    raise invalid('save', list(save), wanted)
  if save and track is None:
    raise UserError(
      f'--save {save[0]} needs --track.', argument='save', given=save[0]
    )


def _names(clips, track, save) -> list[str]:
  names = [f'videos/{clip.name}.mp4' for clip in clips]
  names += ['detections.json', 'images.json']
  names += ['tracks.json'] * (track is not None)
  names += ['youtube_vis.json'] * ('youtube_vis' in save)
  return names + [f'mots/{clip.name}.txt' for clip in clips if 'mots' in save]


@dataclasses.dataclass
class _Run:
  """What the frames of all clips share."""

  predictor: Predictor
  folder: os.PathLike
  store: TrackStore
  scores: float | Mapping[int | None, float]
  every: int
  track: str | None
  save: Sequence[str]
  videos: list[dict] = dataclasses.field(default_factory=list)
  num_frames: int = 0

  def detect(self, clips: Sequence[Clip]) -> None:
    """Goes through the clips; writes their videos, and stores the results."""
    total = sum(-(-clip.length // self.every) for clip in clips)
    with (
      concurrent.futures.ThreadPoolExecutor(_WORKERS) as pool,
      tqdm.tqdm(
        total=total, unit='frame', disable=not sys.stderr.isatty()
      ) as bar,
    ):
      for clip in clips:
        path = self.folder / 'videos' / f'{clip.name}.mp4'
        with video.written(path, clip.rate / self.every) as file:
          # Stopped also by an error, so that nothing is read any more.
          results = self._results(clip, len(self.videos) + 1, pool)
          with contextlib.closing(results):
            length = 0
            for seconds, picture, result in results:
              file.add(picture, seconds)
              self.store.add(result)
              length += 1
              bar.update()
        self.videos.append(
          {
            'id': len(self.videos) + 1,
            'name': clip.name,
            'file_name': os.fspath(clip.path),
            'width': result.entry['width'],
            'height': result.entry['height'],
            'length': length,
            'frame_rate': float(clip.rate / self.every),
          }
        )

  def _results(self, clip, video_id, pool) -> Iterator[tuple]:
    """Yields (seconds, picture, result) of the frames, in order."""
    tracker = self._tracker(clip)
    waiting = collections.deque()
    for frame_id, (frame, found) in enumerate(self._found(clip)):
      ids = None
      if tracker is not None:
        ids = tracker.update(found, frame.pixels.shape[:2])
      self.num_frames += 1
      entry = {
        'id': self.num_frames,
        'video_id': video_id,
        'frame_id': frame_id,
        'frame_number': frame.number,
        'time': round(frame.seconds, 6),
        'file_name': clip.file_name(frame.number),
        'height': frame.pixels.shape[0],
        'width': frame.pixels.shape[1],
      }
      task = pool.submit(self._finish, frame, found, ids, entry)
      waiting.append((frame.seconds, task))
      while len(waiting) > 2 * _WORKERS:
        seconds, task = waiting.popleft()
        yield seconds, *task.result()
    for seconds, task in waiting:
      yield seconds, *task.result()

  def _tracker(self, clip) -> Tracker | None:
    if self.track is None:
      return None
    return Tracker(
      TrackOptions(
        overlap=self.track,
        high_score=self.scores,
        max_lost=max(1, int(clip.rate / self.every)),
      )
    )

  def _found(self, clip) -> Iterator[tuple[Frame, Detections]]:
    """Yields the frames with their detections, in order."""
    reading, found, following = {}, {}, 0

    def pixels():
      for index, frame in enumerate(clip.read(self.every)):
        reading[index] = frame
        yield frame.pixels

    # Of frames of one size none waits long: all fill the same batches.
    for index, of_frame in self.predictor.stream(pixels()):
      found[index] = of_frame
      while following in found:
        yield reading.pop(following), found.pop(following)
        following += 1

  def _finish(self, frame, found, ids, entry) -> tuple[np.ndarray, FrameResult]:
    """The picture of a frame, and what is stored of it."""
    if self.save and found.masks is None:
      raise UserError(
        f'--save {self.save[0]} needs a model with a mask head.',
        argument='save',
        given=self.save[0],
      )
    size = frame.pixels.shape[:2]
    results = coco_results.image_results(
      found, entry['id'], size, self.predictor.category_ids
    )
    drawn = found if ids is not None else views.with_score(found, self.scores)
    picture = visualize.draw(
      frame.pixels,
      drawn,
      self.predictor.class_names,
      0.0,
      visualize.enlargement(size),
      ids,
    )
    return picture, FrameResult(entry, results, ids)
