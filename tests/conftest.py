"""Signals, fixtures and the order of tests."""

import pathlib
import signal
import sys

import pytest

TESTS = pathlib.Path(__file__).parent

# Background jobs of a shell ignore SIGINT; the processes that tests interrupt
# would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope='module')
def _free_programs():
  """Programs compiled for a file go with it: they would add up to gigabytes."""
  yield
  if 'jax' in sys.modules:
    sys.modules['jax'].clear_caches()


@pytest.fixture(scope='module')
def recorded(request):
  """Arrays of one recording, see `golden_files.each`."""
  import golden_files  # Only golden tests pay for NumPy.

  return golden_files.load(*request.param)


# Files that take longest, the longest first, of measured processor seconds.
LONGEST = (
  'habana/test_runs.py',
  'training/test_loop.py',
  'distributed/test_distributed.py',
  'models/test_model_golden.py',
  'training/test_training_aids.py',
  'training/test_train_step.py',
  'distributed/test_mesh.py',
  'training/test_recipes.py',
  'input_pipeline/test_batches.py',
  'training/test_accumulated_run.py',
  'models/test_backbone.py',
  'export/test_fresh_process.py',
  'test_kills.py',
  'properties/test_label_properties.py',
  'ops/test_roi_align_golden.py',
  'optimization/test_accumulation.py',
  'input_pipeline/test_augmented_batches.py',
  'properties/test_target_properties.py',
  'weights/test_detectron2_training_golden.py',
  'weights/test_detectron2_golden.py',
  'models/test_mask_rcnn.py',
  'test_readme.py',
  'export/test_onnx_program.py',
  'input_pipeline/test_faults.py',
  'test_packaging.py',
  'weights/test_torchvision_training_golden.py',
  'models/test_proposals_golden.py',
  'inference/test_received_workdir.py',
)


def pytest_collection_modifyitems(items):
  """Longest files and those with slow tests first: workers end together."""
  longest = {TESTS / name: rank for rank, name in enumerate(LONGEST)}
  slow = {x.path for x in items if x.get_closest_marker('slow')}
  items.sort(
    key=lambda x: (
      longest.get(x.path, len(LONGEST)),
      x.path not in slow,
      x.path.parent != TESTS,
    )
  )
