"""Who may import whom: stages stay separable, heavy packages at the edge."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# File or folder -> what it may import besides the standard library; a leading
# dot is a part of maskrcnn_jax. The longest fitting row counts.
ALLOWED = {
  'configs': 'ml_collections',
  'data': 'numpy PIL pycocotools tensorflow_datasets .datasets',
  'data/extract_backbone': 'tensorflow',
  'maskrcnn_jax/__init__': '',
  'maskrcnn_jax/benchmarks/__init__': '',
  'maskrcnn_jax/benchmarks/detections': 'numpy .datasets.masks .structures',
  'maskrcnn_jax/benchmarks/evaluation': 'tqdm .benchmarks .evaluation',
  'maskrcnn_jax/benchmarks/input_pipeline': '.benchmarks.input_stages',
  'maskrcnn_jax/benchmarks/input_stages': (
    'numpy tensorflow tqdm .datasets .input_pipeline'
  ),
  'maskrcnn_jax/benchmarks/plain_evaluation': 'numpy pycocotools',
  'maskrcnn_jax/config': 'ml_collections',
  'maskrcnn_jax/datasets': 'numpy pycocotools PIL tqdm .datasets',
  'maskrcnn_jax/datasets/formats': 'yaml .datasets',
  'maskrcnn_jax/datasets/prepare': '.datasets',
  'maskrcnn_jax/datasets/records': 'numpy tensorflow .datasets',
  'maskrcnn_jax/datasets/verb': '.command_line .datasets',
  'maskrcnn_jax/datasets/tfds_features': (
    'numpy tensorflow_datasets .datasets'
  ),
  'maskrcnn_jax/evaluation': 'numpy .evaluation .structures',
  'maskrcnn_jax/evaluation/class_report': 'numpy .evaluation .tables',
  # They run in processes that must not import JAX, as `structures` does.
  'maskrcnn_jax/evaluation/mask_edges': 'numpy',
  'maskrcnn_jax/evaluation/processes': '',
  'maskrcnn_jax/evaluation/run_lengths': 'numpy .evaluation.mask_edges',
  'maskrcnn_jax/evaluation/scoring': (
    'numpy pycocotools hotcoco .evaluation.processes'
  ),
  'maskrcnn_jax/input_pipeline': (
    'numpy absl tensorflow .datasets .input_pipeline'
  ),
  'maskrcnn_jax/backends': 'jax',
  'maskrcnn_jax/benchmarks': (
    'jax numpy optax PIL tqdm .benchmarks .models .ops .structures .tables'
    ' .training .weights.torchvision'
  ),
  'maskrcnn_jax/benchmarks/example_batches': 'numpy PIL .input_pipeline',
  'maskrcnn_jax/benchmarks/options': '',
  'maskrcnn_jax/benchmarks/torchvision_side': 'numpy torch torchvision',
  'maskrcnn_jax/benchmarks/verb': '.benchmarks .config .runtime',
  'maskrcnn_jax/checking': '.checking .datasets .tables',
  'maskrcnn_jax/checking/objects': 'numpy .datasets',
  'maskrcnn_jax/checking/pictures': (
    'numpy PIL .checking .datasets .input_pipeline .structures .visualize'
  ),
  'maskrcnn_jax/checking/verb': '.checking .config',
  'maskrcnn_jax/command_line': '.launcher .runtime',
  'maskrcnn_jax/export': '',
  # Runs where this package is not.
  'maskrcnn_jax/export/detect': 'jax numpy PIL',
  'maskrcnn_jax/export/exporter': (
    'jax numpy tqdm .__version__ .export .input_pipeline.transforms .models'
    ' .training.checkpoint'
  ),
  'maskrcnn_jax/export/program': 'jax numpy flax .models.mask_rcnn',
  'maskrcnn_jax/export/saved_model': (
    'jax numpy tensorflow .input_pipeline.reader'
  ),
  'maskrcnn_jax/export/verb': '.backends .export',
  'maskrcnn_jax/inference': 'numpy .evaluation.coco_results .structures',
  'maskrcnn_jax/inference/browse': (
    'numpy PIL .evaluation.coco_results .structures'
  ),
  'maskrcnn_jax/inference/image_files': (
    'numpy PIL .datasets.images .input_pipeline.single_images'
  ),
  'maskrcnn_jax/inference/image_list': '.datasets.annotations .inference',
  'maskrcnn_jax/inference/merging': 'jax numpy .ops .structures',
  'maskrcnn_jax/inference/output_folder': '',
  'maskrcnn_jax/inference/predict': (
    'numpy PIL tqdm .datasets .evaluation.coco_results .inference .runtime'
    ' .structures .visualize'
  ),
  'maskrcnn_jax/inference/predictor': (
    'jax numpy .inference .input_pipeline .models .structures .training'
  ),
  'maskrcnn_jax/inference/tiling': 'numpy PIL .inference.views',
  'maskrcnn_jax/inference/verb': 'PIL .backends .inference',
  'maskrcnn_jax/launcher': '',
  'maskrcnn_jax/main': (
    '.benchmarks.verb .checking.verb .command_line .datasets.verb .export.verb'
    ' .inference.verb .planning.verb .training.verbs'
  ),
  'maskrcnn_jax/models': 'jax numpy flax .ops .models .structures',
  'maskrcnn_jax/models/losses': 'jax numpy flax optax .ops .models .structures',
  'maskrcnn_jax/ops': 'jax numpy .ops',
  'maskrcnn_jax/plan': (
    'jax .config .input_pipeline .models.mask_rcnn .planning .training'
  ),
  'maskrcnn_jax/planning': '',
  'maskrcnn_jax/planning/report': 'PIL .tables',
  'maskrcnn_jax/planning/topologies': 'jax',
  'maskrcnn_jax/planning/verb': (
    '.backends .command_line .config .plan .planning'
  ),
  'maskrcnn_jax/roll_call': 'jax',
  'maskrcnn_jax/runtime': 'jax .backends .launcher .roll_call',
  'maskrcnn_jax/seed_command': ('yaml .config .runtime .seed_flags .training'),
  'maskrcnn_jax/seed_flags': 'absl.flags .command_line .seed_command',
  'maskrcnn_jax/structures': 'jax numpy flax.struct',
  'maskrcnn_jax/tables': '',
  'maskrcnn_jax/training': (
    'jax numpy flax optax ml_collections .models .structures .training'
  ),
  'maskrcnn_jax/training/checkpoint': (
    'jax numpy flax orbax ml_collections .config .models .structures .training'
  ),
  'maskrcnn_jax/training/checkpoint_layout': (
    'jax numpy orbax ml_collections .training.checkpoint_health'
    ' .training.scores'
  ),
  'maskrcnn_jax/training/checkpoint_policy': (
    'orbax .training.checkpoint_layout .training.scores'
  ),
  'maskrcnn_jax/training/checkpoint_writer': 'jax numpy orbax .training',
  'maskrcnn_jax/training/checkpoint_match': '.models .training',
  'maskrcnn_jax/training/conversion': (
    'jax .config .models .training .weights'
  ),
  'maskrcnn_jax/training/curves': 'numpy PIL .training.scores',
  'maskrcnn_jax/training/early_stopping': '.training.scores',
  'maskrcnn_jax/training/finetuning': (
    'ml_collections .config .models .training .weights'
  ),
  'maskrcnn_jax/training/loop': (
    'jax ml_collections .models .structures .training'
  ),
  'maskrcnn_jax/training/scores': '',
  'maskrcnn_jax/training/steps': (
    'jax numpy .models .training .input_pipeline .evaluation .roll_call'
  ),
  'maskrcnn_jax/training/evaluation_data': 'jax .datasets',
  'maskrcnn_jax/training/evaluation_output': (
    'numpy .evaluation .training .visualize'
  ),
  'maskrcnn_jax/training/evaluator': (
    'jax numpy .models .structures .training .input_pipeline .evaluation'
    ' .visualize'
  ),
  'maskrcnn_jax/training/metrics': 'numpy tensorboardX tqdm',
  'maskrcnn_jax/training/options': (
    '.evaluation.coco_metrics .training.scores'
  ),
  'maskrcnn_jax/training/pretrained': (
    'jax numpy .models .training .weights.account .weights.foreign'
  ),
  'maskrcnn_jax/training/verbs': '.backends .config .runtime .training',
  'maskrcnn_jax/training/watchdog': '.roll_call',
  'maskrcnn_jax/visualize': 'numpy PIL .evaluation.mask_edges .structures',
  'maskrcnn_jax/weights': 'numpy .weights',
  'maskrcnn_jax/weights/pickles': 'numpy ml_dtypes',
  'maskrcnn_jax/weights/tensor_files': (
    'numpy ml_dtypes safetensors .weights.pickles'
  ),
  'maskrcnn_jax/weights/tensor_writing': 'numpy safetensors',
  'maskrcnn_jax/weights/tensorflow': 'numpy tensorflow .weights',
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


@pytest.mark.parametrize('folder', ['maskrcnn_jax', 'configs', 'data'])
def test_files_import_only_what_their_layer_may(folder):
  for path in sorted((ROOT / folder).rglob('*.py')):
    name = path.relative_to(ROOT).with_suffix('').as_posix()
    layers = [x for x in ALLOWED if name == x or name.startswith(f'{x}/')]
    assert layers, f'{name} has no row in ALLOWED.'
    allowed = ALLOWED[max(layers, key=len)].split()
    siblings = {p.stem for p in path.parent.glob('*.py')} - {'__init__'}
    if folder != 'maskrcnn_jax':  # Scripts see the files beside them.
      allowed += siblings
    for imported in _imports(path):
      standard = imported.partition('.')[0] in sys.stdlib_module_names
      fits = any(f'{imported}.'.startswith(f'{x}.') for x in allowed)
      assert standard or fits, f'{name} imports {imported}.'
