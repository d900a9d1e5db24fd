"""Memory of a long `predict` does not grow with the number of images.

`python test_long_predict.py 5000 1000` prints it after every 1000 of 5000.
"""

import os
import sys

import numpy as np
import pytest
import resident_memory
from PIL import Image

KEPT = ('maskrcnn_jax.inference.writer', 'Writer', 'keep')


def resident(folder, num_images, every):
  """Resident memory each time `every` more images are done."""
  images, rng = folder / 'images', np.random.default_rng(0)
  images.mkdir()
  for number in range(num_images):
    height, width = rng.integers(40, 120, 2)
    pixels = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    image = Image.fromarray(pixels).resize((width, height))
    image.save(images / f'{number}.jpg')
  return resident_memory.after_every(
    every, KEPT, folder, images, '--batch_size=8'
  )


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='no /proc')
def test_memory_is_flat_from_1000_to_5000_images(tmp_path):
  after = resident(tmp_path, 5000, 1000)
  assert after[-1] <= 1.05 * after[0], after


if __name__ == '__main__':
  import pathlib
  import tempfile

  with tempfile.TemporaryDirectory() as temporary:
    for value in resident(pathlib.Path(temporary), *map(int, sys.argv[1:])):
      print(f'{value / 1e6:.1f} MB')
