"""Imports by folder: who may import whom, and heavy packages at the edge."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# Allowed everywhere, as are the standard library and a file's own folder; a
# leading dot stands for maskrcnn_jax.
EVERYWHERE = ('.errors', '.files', '.override', '.terminal', '.wire_format')
# Folder or file -> other allowed imports. The longest row that fits applies.
ALLOWED = {
  'configs': 'ml_collections .config',
  'data': 'numpy PIL pycocotools tensorflow tensorflow_datasets .datasets',
  'data/pretrained_weights': 'pooch requests urllib3 .weights.published',
  'maskrcnn_jax': (
    'numpy PIL ml_collections .evaluation.mask_pasting .fonts .structures'
  ),
  'maskrcnn_jax/fonts': 'PIL matplotlib',
  'maskrcnn_jax/charts': 'numpy matplotlib .evaluation.scores .tables',
  'maskrcnn_jax/structures': (  # Forms of detections, imported when asked for.
    'jax numpy flax.struct supervision .datasets.outlines'
    ' .evaluation.mask_pasting'
  ),
  'maskrcnn_jax/ops': 'jax numpy',
  'maskrcnn_jax/models': 'jax numpy flax optax .ops .structures',
  'maskrcnn_jax/datasets': 'numpy pycocotools PIL tqdm yaml .tables',
  'maskrcnn_jax/datasets/stored_images': 'PIL tensorflow',
  'maskrcnn_jax/datasets/records': 'numpy tensorflow',
  'maskrcnn_jax/datasets/tfds_features': 'numpy tensorflow_datasets',
  'maskrcnn_jax/datasets/doctor/page': (
    'numpy PIL .fonts .input_pipeline .structures .visualize'
  ),
  'maskrcnn_jax/input_pipeline': 'numpy absl tensorflow .datasets',
  'maskrcnn_jax/evaluation': (
    'numpy pycocotools hotcoco .datasets .datasets.masks .structures .tables'
  ),
  'maskrcnn_jax/evaluation/precision_recall': 'numpy .charts .fonts',
  'maskrcnn_jax/weights': 'numpy ml_dtypes safetensors',
  'maskrcnn_jax/weights/download': 'pooch requests',
  'maskrcnn_jax/distributed': 'jax numpy .models',
  'maskrcnn_jax/checkpoints': (
    'jax numpy flax orbax tensorstore ml_collections .config'
    ' .datasets.record_index .distributed .evaluation.score_thresholds'
    ' .evaluation.scores .models'
  ),
  'maskrcnn_jax/optimization': 'jax optax .models',
  'maskrcnn_jax/optimization/epochs': (
    'numpy .config .datasets.records .input_pipeline.batches'
  ),
  'maskrcnn_jax/training': (
    'jax numpy flax optax ml_collections tensorboardX tqdm .charts'
    ' .checkpoints .config .datasets .distributed .evaluation'
    ' .habana.metric_names .input_pipeline.batches'
    ' .inference.detection .input_pipeline.single_images .models'
    ' .optimization'
    ' .structures .visualize .weights'
  ),
  'maskrcnn_jax/training/train_state': (
    'jax flax.struct .models .optimization .structures'
  ),
  'maskrcnn_jax/training/train_step': (
    'jax optax .distributed.mesh .models .optimization .structures'
  ),
  'maskrcnn_jax/inference': (
    'jax numpy scipy pycocotools PIL tqdm av .checkpoints .datasets'
    ' .distributed .evaluation'
    ' .input_pipeline .models .ops.nms .structures .visualize'
  ),
  'maskrcnn_jax/export': (
    'jax numpy flax tensorflow onnx onnxruntime tqdm .__version__ .checkpoints'
    ' .config .datasets.images .datasets.value_range .input_pipeline .models'
    ' .ops .weights'
  ),
  # It runs without this package.
  'maskrcnn_jax/export/detect': 'jax numpy onnxruntime PIL',
  'maskrcnn_jax/planning': (
    'jax .charts .config .distributed .inference.detection .input_pipeline'
    ' .models.mask_rcnn .optimization.optimizer .tables .training.train_state'
    ' .training.train_step'
  ),
  'maskrcnn_jax/benchmarks': (
    'jax numpy flax optax PIL tensorflow tqdm .charts .datasets .distributed'
    ' .evaluation .inference.detection .input_pipeline .models .ops.images'
    ' .optimization .planning .structures .tables .training .visualize .weights'
  ),
  'maskrcnn_jax/benchmarks/torchvision_side': 'numpy timm torch torchvision',
  'maskrcnn_jax/habana': (
    'absl yaml .cli.command_line .config .distributed .training.loop'
  ),
  'maskrcnn_jax/cli': (
    'PIL .benchmarks .charts .config .datasets .distributed .evaluation .export'
    ' .inference .planning .tables .training .weights'
  ),
}


def _imports(path):
  """Full names of a file's imports; those of this package start with a dot."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}:{node.lineno} imports relatively.'
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    else:
      continue
    yield from (name.removeprefix('maskrcnn_jax') for name in names)


def _allowed(path, name):
  """Allowed imports of a file: its row, and its own folder."""
  rows = [x for x in ALLOWED if name == x or name.startswith(f'{x}/')]
  yield from (*ALLOWED[max(rows, key=len)].split(), *EVERYWHERE)
  parts = name.split('/')
  if parts[0] != 'maskrcnn_jax':  # Scripts see the files beside them.
    yield from (x.stem for x in path.parent.glob('*.py'))
  else:
    yield '.cli.main' if len(parts) < 3 else f'.{parts[1]}'


@pytest.mark.parametrize('folder', ['maskrcnn_jax', 'configs', 'data'])
def test_files_import_only_what_their_row_allows(folder):
  for path in sorted((ROOT / folder).rglob('*.py')):
    name = path.relative_to(ROOT).with_suffix('').as_posix()
    allowed = list(_allowed(path, name))
    for imported in _imports(path):
      standard = imported.partition('.')[0] in sys.stdlib_module_names
      fits = any(f'{imported}.'.startswith(f'{x}.') for x in allowed)
      assert standard or fits, f'{name} imports {imported}.'
