"""Memory of `predict` on a video does not grow with its length.

`python test_long_video.py` prints it after every 100 of 1,000 frames.
"""

import json
import os
import subprocess
import sys

import drawn_checkpoint
import numpy as np
import pytest
import quick
import tiny_run

# Prints the resident memory, in bytes, each time 100 frames are stored.
_SCRIPT = """
import json, os, sys
workdir, video, output = sys.argv[1:]
from maskrcnn_jax.inference.track_files import TrackStore
add, seen = TrackStore.add, []

def add_and_measure(self, frame):
  add(self, frame)
  if frame.entry['id'] % 100 == 0:
    with open('/proc/self/statm') as file:
      seen.append(int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE'))

TrackStore.add = add_and_measure
from maskrcnn_jax.cli import main
flags = [f'--workdir={workdir}', f'--output={output}', '--batch_size=4']
flags += ['--track', '--min_score=0.2', '--save=mots,youtube_vis']
assert main.main(['predict', *flags, '--images', video]) == 0
print(json.dumps(seen))
"""


def resident(folder, num_frames):
  """Resident memory each time 100 more frames are done."""
  av = pytest.importorskip('av')
  config = tiny_run.make_config('none', 'none')
  config.input.canvases, config.input.image_dtype = ((64, 96),), 'uint8'
  config.model.detections.max_detections = 20
  workdir = drawn_checkpoint.write(folder / 'run', config)
  rng = np.random.default_rng(0)
  with av.open(str(folder / 'long.mp4'), 'w') as container:
    stream = container.add_stream('mpeg4', rate=30)
    stream.height, stream.width, stream.pix_fmt = 64, 96, 'yuv420p'
    for _ in range(num_frames):
      cells = rng.integers(0, 256, (8, 12, 3), np.uint8)
      pixels = cells.repeat(8, axis=0).repeat(8, axis=1)
      frame = av.VideoFrame.from_ndarray(pixels, format='rgb24')
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  done = subprocess.run(
    [sys.executable, '-c', _SCRIPT]
    + [str(folder / name) for name in (workdir, 'long.mp4', 'out')],
    env={**os.environ, 'XLA_FLAGS': quick.xla_flags()},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_memory_is_that_of_a_short_video(tmp_path):
  first, *_, last = resident(tmp_path, 1000)
  assert last < 1.05 * first


if __name__ == '__main__':
  import pathlib
  import tempfile

  with tempfile.TemporaryDirectory() as folder:
    print([round(x / 1e6) for x in resident(pathlib.Path(folder), 1000)])
