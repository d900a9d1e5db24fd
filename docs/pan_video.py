"""Ids of tracks in a camera's pan over one photograph.

  python docs/pan_video.py make photo.png pan.mp4
  maskrcnn-jax predict --workdir RUN --images pan.mp4 --output found --track
  python docs/pan_video.py count pan.json found/tracks.json

The clip has 100 frames of ten seconds: a window that moves over the
photograph, and a part of the photograph that moves against it. Three times, two
frames in a row show nothing. pan.json has the places of the window and of the
moving part, so that objects can be found again in the photograph.
"""

import json
import pathlib
import sys

import numpy as np
from PIL import Image

SIDE, CROP, NUM_FRAMES = 256, 64, 100
TOP = 96  # Of the moving part.
GAPS = (30, 55, 80)  # First of two empty frames.


def make(photo, output):
  """Writes the clip, and the places in each frame beside it."""
  import av

  pixels = np.asarray(Image.open(photo).convert('RGB'))
  height, width = pixels.shape[:2]
  crop = pixels[:CROP, :CROP]
  swing = min(40, (height - SIDE) / 2)
  places = []
  with av.open(output, 'w') as file:
    stream = file.add_stream('libx264', rate=10)
    stream.height = stream.width = SIDE
    stream.pix_fmt, stream.options = 'yuv420p', {'crf': '12'}
    for number in range(NUM_FRAMES):
      time = number / NUM_FRAMES
      x = round(min(2.0, (width - SIDE) / NUM_FRAMES) * number)
      y = round((height - SIDE) / 2 + swing * np.sin(2 * np.pi * time))
      frame = pixels[y : y + SIDE, x : x + SIDE].copy()
      left = round((SIDE - CROP) * (1 - time))
      frame[TOP : TOP + CROP, left : left + CROP] = crop
      if number in GAPS or number - 1 in GAPS:
        frame[:] = pixels.mean()
      picture = av.VideoFrame.from_ndarray(frame, format='rgb24')
      file.mux(stream.encode(picture))
      places.append((y, x, left))
    file.mux(stream.encode())
  pathlib.Path(output).with_suffix('.json').write_text(json.dumps(places))


def count(places, tracks):
  """Prints how many objects have the same id after each gap as before."""
  places = json.loads(pathlib.Path(places).read_text())
  tracks = json.loads(pathlib.Path(tracks).read_text())
  numbers = {x['id']: x['frame_number'] for x in tracks['images']}
  frames = [[] for _ in places]
  for track in tracks['annotations']:
    number = numbers[track['image_id']]
    box = in_photograph(track['bbox'], *places[number])
    frames[number].append((track['instance_id'], box))
  print(f'{len({i for frame in frames for i, _ in frame})} tracks')
  for gap in GAPS:
    same, found = compare(frames[gap - 1], frames[gap + 2])
    print(
      f'frames {gap - 1} and {gap + 2}: {found} objects, {same} with their id'
    )


def in_photograph(box, top, start, left):
  """(y1, x1, y2, x2) of an object; the moving part lies left of the rest."""
  x, y, width, height = box
  row, column = y + height / 2 - TOP, x + width / 2 - left
  if 0 <= row < CROP and 0 <= column < CROP:
    y, x = y - TOP, x - left - 2 * CROP
  else:
    y, x = y + top, x + start
  return np.array([y, x, y + height, x + width])


def compare(before, after):
  """Number of objects with their id, and of all that are in both frames."""
  same = found = 0
  for track_id, box in after:
    overlaps = [iou(box, other) for _, other in before]
    if overlaps and max(overlaps) > 0.5:
      found += 1
      same += before[int(np.argmax(overlaps))][0] == track_id
  return same, found


def iou(a, b):
  """Intersection over union of two boxes."""
  sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
  shared = np.prod(np.maximum(sides, 0))
  areas = [np.prod(x[2:] - x[:2]) for x in (a, b)]
  return shared / (sum(areas) - shared)


if __name__ == '__main__':
  {'make': make, 'count': count}[sys.argv[1]](*sys.argv[2:])
