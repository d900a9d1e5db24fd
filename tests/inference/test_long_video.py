"""Memory of `predict` on a video does not grow with its length.

`python test_long_video.py` prints it after every 100 of 1,000 frames.
"""

import numpy as np
import pytest
import resident_memory

STORED = ('maskrcnn_jax.inference.track_files', 'TrackStore', 'add')


def resident(folder, num_frames, every=100):
  """Resident memory each time `every` more frames are done."""
  av = pytest.importorskip('av')
  rng, path = np.random.default_rng(0), folder / 'long.mp4'
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('mpeg4', rate=30)
    stream.height, stream.width, stream.pix_fmt = 64, 96, 'yuv420p'
    for _ in range(num_frames):
      cells = rng.integers(0, 256, (8, 12, 3), np.uint8)
      pixels = cells.repeat(8, axis=0).repeat(8, axis=1)
      frame = av.VideoFrame.from_ndarray(pixels, format='rgb24')
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  flags = ['--batch_size=4', '--track', '--min_score=0.2']
  return resident_memory.after_every(
    every, STORED, folder, path, *flags, '--save=mots,youtube_vis'
  )


@pytest.mark.long
def test_memory_is_that_of_a_short_video(tmp_path):
  first, *_, last = resident(tmp_path, 1000)
  assert last < 1.05 * first


if __name__ == '__main__':
  import pathlib
  import tempfile

  with tempfile.TemporaryDirectory() as folder:
    print([round(x / 1e6) for x in resident(pathlib.Path(folder), 1000)])
