"""Memory of a long `predict` does not grow with the number of images.

`python test_long_predict.py 5000 1000` prints it after every 1000 of 5000.
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
from PIL import Image

# Prints the resident memory, in bytes, each time so many images are done.
_SCRIPT = """
import json, os, sys
workdir, images, output, every = sys.argv[1:]
from maskrcnn_jax.inference import writer
keep, seen = writer.Writer.keep, []

def keep_and_measure(self, *args):
  keep(self, *args)
  keep_and_measure.count += 1
  if keep_and_measure.count % int(every) == 0:
    with open('/proc/self/statm') as file:
      seen.append(int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE'))

keep_and_measure.count = 0
writer.Writer.keep = keep_and_measure
from maskrcnn_jax.cli import main
flags = [f'--workdir={workdir}', f'--output={output}', '--batch_size=8']
assert main.main(['predict', *flags, '--images', images]) == 0
print(json.dumps(seen))
"""


def resident(folder, num_images, every):
  """Resident memory each time `every` more images are done."""
  config = tiny_run.make_config('', '')
  config.input.canvases, config.input.image_dtype = ((64, 96),), 'uint8'
  config.model.detections.max_detections = 20
  workdir = drawn_checkpoint.write(folder / 'run', config)
  images, rng = folder / 'images', np.random.default_rng(0)
  images.mkdir()
  for number in range(num_images):
    height, width = rng.integers(40, 120, 2)
    pixels = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    image = Image.fromarray(pixels).resize((width, height))
    image.save(images / f'{number}.jpg')
  argv = [workdir, images, folder / 'out', str(every)]
  done = subprocess.run(
    [sys.executable, '-c', _SCRIPT, *argv],
    env={**os.environ, 'XLA_FLAGS': quick.xla_flags()},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(done.stdout.splitlines()[-1])


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
