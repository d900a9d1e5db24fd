"""The direction of imports: rooms are separable, heavy packages at the edge."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# Folder or file -> what it may import besides the standard library, itself and
# `.errors`; a leading dot is a part of maskrcnn_jax. The longest row that fits
# counts.
ALLOWED = {
  'configs': 'ml_collections .config',
  'data': (
    'numpy PIL pycocotools tensorflow tensorflow_datasets .datasets .errors'
    ' .files'
  ),
  'maskrcnn_jax': 'numpy PIL ml_collections .evaluation .structures',
  'maskrcnn_jax/charts': 'numpy matplotlib .evaluation.scores .files',
  'maskrcnn_jax/structures': 'jax numpy flax.struct',
  'maskrcnn_jax/ops': 'jax numpy',
  'maskrcnn_jax/models': 'jax numpy flax optax .ops .structures',
  'maskrcnn_jax/datasets': 'numpy pycocotools PIL tqdm yaml .files .tables',
  'maskrcnn_jax/datasets/records': 'numpy tensorflow .files',
  'maskrcnn_jax/datasets/tfds_features': 'numpy tensorflow_datasets',
  'maskrcnn_jax/datasets/doctor/pictures': (
    'numpy PIL .input_pipeline .structures .visualize'
  ),
  'maskrcnn_jax/input_pipeline': 'numpy absl tensorflow .datasets',
  'maskrcnn_jax/evaluation': (
    'numpy pycocotools hotcoco .files .structures .tables'
  ),
  'maskrcnn_jax/weights': 'numpy ml_dtypes safetensors',
  'maskrcnn_jax/weights/tensorflow': 'numpy tensorflow',
  'maskrcnn_jax/distributed': 'jax numpy .files .models',
  'maskrcnn_jax/checkpoints': (
    'jax numpy orbax ml_collections .config .distributed.collectives .files'
    ' .evaluation.scores .models'
  ),
  'maskrcnn_jax/training': (
    'jax numpy flax optax ml_collections tensorboardX tqdm .charts .checkpoints'
    ' .config .datasets .distributed .evaluation .files .habana.metric_names'
    ' .input_pipeline .models .structures .visualize .weights'
  ),
  'maskrcnn_jax/training/train_step': (
    'jax optax .distributed.mesh .models .structures'
  ),
  'maskrcnn_jax/inference': (
    'jax numpy PIL tqdm .checkpoints .datasets .distributed .evaluation'
    ' .files .input_pipeline .models .ops .structures .training .visualize'
  ),
  'maskrcnn_jax/export': (
    'jax numpy flax tensorflow PIL tqdm .__version__ .checkpoints'
    ' .input_pipeline .models'
  ),
  'maskrcnn_jax/export/detect': 'jax numpy PIL',  # Runs without this package.
  'maskrcnn_jax/planning': (
    'jax .benchmarks.measure .charts .config .distributed .files'
    ' .input_pipeline .models .tables .training'
  ),
  'maskrcnn_jax/benchmarks': (
    'jax numpy flax optax PIL tensorflow torch torchvision tqdm .charts .files'
    ' .datasets .distributed .evaluation .input_pipeline .models .ops'
    ' .structures .tables .training .weights'
  ),
  'maskrcnn_jax/benchmarks/torchvision_side': 'numpy torch torchvision',
  'maskrcnn_jax/habana': 'absl yaml .cli .config .distributed .training',
  'maskrcnn_jax/cli': (
    'PIL .benchmarks .config .datasets .distributed .export .inference'
    ' .planning .training'
  ),
}


def _imports(path):
  """Full names that a file imports, anywhere in it; own ones from a dot on."""
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
  """What a file may import: its row, its own room, and its siblings."""
  rows = [x for x in ALLOWED if name == x or name.startswith(f'{x}/')]
  parts = name.split('/')
  yield from ALLOWED[max(rows, key=len)].split()
  if parts[0] != 'maskrcnn_jax':  # Scripts see the files beside them.
    yield from (x.stem for x in path.parent.glob('*.py'))
  else:
    yield from (
      '.errors',
      '.files',
      '.cli.main' if len(parts) < 3 else f'.{parts[1]}',
    )


@pytest.mark.parametrize('folder', ['maskrcnn_jax', 'configs', 'data'])
def test_files_import_only_what_their_room_may(folder):
  for path in sorted((ROOT / folder).rglob('*.py')):
    name = path.relative_to(ROOT).with_suffix('').as_posix()
    allowed = list(_allowed(path, name))
    for imported in _imports(path):
      standard = imported.partition('.')[0] in sys.stdlib_module_names
      fits = any(f'{imported}.'.startswith(f'{x}.') for x in allowed)
      assert standard or fits, f'{name} imports {imported}.'
