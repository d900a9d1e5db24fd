"""Weights of full size, imported and used by the command as a user does."""

import json
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile

import golden_files
import numpy as np
import pytest
import recorded_backbones
import recorded_detectron2
from golden_files import swap_axes as swap
from recorded_detections import SCORE, box_tolerance, in_order
from recorded_detectron2 import CLASS_IDS

from maskrcnn_jax.structures import Detections

# Processor time, and the largest resident memory, of an import.
SECONDS, BYTES = 60, 6e9
# Lines of a load report that name tensors which went astray.
SURPRISES = ('prefix:', 'unexpected:', 'folded:', 'missing:', 'mismatched:')

pytestmark = [pytest.mark.slow, pytest.mark.long]


def vitdet_b():
  """The published names and shapes of ViTDet-B with values of the formula."""
  spec = recorded_backbones.description('weights_spec_vitdet', 'vitdet')
  named = recorded_backbones.description('names_vit_b', 'vitdet')['tensors']
  spec['tensors'] = [{'name': name, 'shape': shape} for name, shape in named]
  return recorded_backbones.vit_formula(spec)


def write(path, arrays):
  """A `.pkl` as in Detectron2's model zoo; returns the number of weights."""
  with open(path, 'wb') as file:
    pickle.dump({'model': arrays, '__author__': 'a test'}, file)
  return sum(not x.endswith('.num_batches_tracked') for x in arrays)


def run(*argv):
  """Lines that a command prints, its processor time and its peak memory."""
  argv = [sys.executable, '-m', 'maskrcnn_jax', *argv]
  with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
    lines = [x.strip() for x in process.stdout]
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
  assert process.returncode == 0
  return lines, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


@pytest.fixture(name='folder')
def fixture_folder():
  """Not `tmp_path`, which would keep gigabytes."""
  with tempfile.TemporaryDirectory() as folder:
    yield pathlib.Path(folder)


def import_and_predict(folder, arrays, image, canvas, fit_size):
  """COCO results of an imported model in an image."""
  source, workdir = folder / 'model_final.pkl', folder / 'run'
  count = write(source, arrays)
  report, seconds, peak = run(
    'import_weights',
    *(f'--source={source}', f'--output={workdir}'),
    f'--config.input.canvases=({canvas},)',
    f'--config.input.resize.fit_size={fit_size}',
  )
  assert f'loaded: {count} tensors' in report
  assert not [x for x in report if x.startswith(SURPRISES)]
  assert seconds < SECONDS, f'{seconds:.1f} s'
  assert peak < BYTES, f'{peak / 1e9:.2f} GB'
  output = folder / 'found'
  run(
    'predict',
    *(f'--workdir={workdir}', f'--images={image}', f'--output={output}'),
  )
  return json.loads((output / 'detections.json').read_text())


def test_a_large_scale_jitter_model_finds_the_recorded_detections(folder):
  (path,) = golden_files.files('e2e_lsj_synthetic_a.npz', 'detectron2')
  golden = golden_files.load(path)
  image = path.parent / 'images' / str(golden['image_file'])
  found = import_and_predict(
    folder,
    recorded_detectron2.state_dict('lsj'),
    image,
    tuple(golden['padded_hw'].tolist()),
    tuple(golden['network_hw'].tolist()),
  )
  boxes = swap(golden['s0/det_boxes'])
  classes = CLASS_IDS[golden['s0/det_classes']]
  left, top, width, height = np.transpose([x['bbox'] for x in found])
  ours = Detections(
    boxes=np.stack([top, left, top + height, left + width], axis=1),
    scores=np.array([x['score'] for x in found]),
    classes=np.array([x['category_id'] for x in found]),
    masks=None,
    valid=None,
  )
  ours = in_order(ours, boxes, classes)
  assert np.all(np.abs(ours.boxes - boxes) <= box_tolerance(boxes))
  np.testing.assert_allclose(ours.scores, golden['s0/det_scores'], atol=SCORE)


def test_a_vitdet_b_detects(folder):
  image = (
    golden_files.folder() / 'vitdet' / 'images' / 'synthetic_a_164x256.png'
  )
  found = import_and_predict(folder, vitdet_b(), image, (256, 256), (256, 256))
  assert found
  assert np.all(np.isfinite([x['bbox'] + [x['score']] for x in found]))
