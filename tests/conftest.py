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
  'distributed/test_distributed.py',
  'training/test_loop.py',
  'models/test_model_golden.py',
  'training/test_training_aids.py',
  'training/test_train_step.py',
  'input_pipeline/test_batches.py',
  'distributed/test_mesh.py',
  'ops/test_roi_align_golden.py',
  'weights/test_detectron2_golden.py',
  'test_kills.py',
  'weights/test_torchvision_golden.py',
  'optimization/test_accumulation.py',
  'weights/test_detectron2_training_golden.py',
  'export/test_onnx_program.py',
  'training/test_own_data_run.py',
  'input_pipeline/test_augmented_batches.py',
  'test_packaging.py',
  'weights/test_torchvision_training_golden.py',
  'inference/test_received_workdir.py',
  'input_pipeline/test_faults.py',
  'benchmarks/test_verb.py',
  'training/test_recipes.py',
  'inference/test_predictor.py',
  'weights/test_tensorflow_golden.py',
  'planning/test_plan.py',
  'test_readme.py',
  'checkpoints/test_earlier_version.py',
  'training/test_accumulated_run.py',
  'export/test_fresh_process.py',
  'datasets/test_prepare.py',
  'models/test_vit_golden.py',
  'test_launch.py',
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
