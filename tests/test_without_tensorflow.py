"""What works, and what says so, where TensorFlow is not installed."""

import importlib.util
import json
import shlex
import sys

import drawn_checkpoint
import export_process
import narrow_models
import numpy as np
import pytest
from PIL import Image

from maskrcnn_jax import errors
from maskrcnn_jax.weights import tensor_files, torchvision

# Of the extra `train`, and what they would bring.
LEFT_OUT = ('tensorflow', 'tensorflow_datasets', 'matplotlib', 'tensorboardX')
MAIN = 'from maskrcnn_jax.cli.main import main\n'


@pytest.mark.slow
def test_weights_become_detections_and_programs(tmp_path):
  """Imports, predicts, scores and exports, by commands alone."""
  variables = drawn_checkpoint.draw_variables(
    narrow_models.make_model(depth=18, num_classes=4)
  )
  weights = torchvision.state_dict(variables)
  tensor_files.write(tmp_path / 'weights.pth', weights)
  rng = np.random.default_rng(0)
  for name in ('a.png', 'b.jpg'):
    pixels = rng.integers(0, 256, (48, 72, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / name)
  truth = {
    'images': [
      {'id': number, 'file_name': name, 'height': 48, 'width': 72}
      for number, name in enumerate(('a.png', 'b.jpg'), 1)
    ],
    'categories': [{'id': i, 'name': f'class {i}'} for i in (1, 2, 3)],
  }
  (tmp_path / 'names.json').write_text(json.dumps(truth))
  canvas = '--config.input.canvases=((64, 96),)'
  fit = '--config.input.resize.fit_size=(64, 96)'
  lines = [
    f"import_weights --source=weights.pth --output=run '{canvas}' '{fit}'",
    'predict --workdir=run --images a.png b.jpg --output=found'
    ' --annotations=names.json --min_score=0 --compilation_cache='
    ' --save=crops,masks,coco,labelme,yolo',
    'export_weights --checkpoint=run --output=again.safetensors',
    'export --workdir=run --output=exported --platforms=cpu --batch_size=1',
    'score --annotations=found/labels.json --results=found/detections.json',
    'weights',
  ]
  argv = [shlex.split(line) for line in lines]
  code = f'{MAIN}for argv in {argv}:\n  assert main(argv) == 0, argv\n'
  shown = export_process.run(code, LEFT_OUT, tmp_path)
  assert 'torchvision/maskrcnn_resnet50_fpn_coco' in shown
  results = json.loads((tmp_path / 'found/detections.json').read_text())
  assert {result['image_id'] for result in results} == {1, 2}
  # The same where TensorFlow is installed, and loaded before.
  again = [x.replace('output=found', 'output=again') for x in argv[1]]
  load = 'import tensorflow\n' if importlib.util.find_spec('tensorflow') else ''
  export_process.run(f'{load}{MAIN}assert main({again}) == 0\n', (), tmp_path)
  for name in ('detections.json', 'images.json', 'labels.json'):
    texts = [(tmp_path / x / name).read_text() for x in ('found', 'again')]
    assert texts[0] == texts[1], name
  again = tensor_files.read(tmp_path / 'again.safetensors').arrays
  for name, value in weights.items():
    np.testing.assert_array_equal(again[name], value, name)
  about = json.loads((tmp_path / 'exported/export.json').read_text())
  assert about['checks']['stablehlo'][0]['missing'] == 0


@pytest.mark.slow
def test_commands_that_need_tensorflow_say_so(tmp_path):
  labels = '--images=. --annotations=truth.json'
  lines = [
    'train --config=shapes --workdir=run',
    'eval --config=shapes --workdir=run',
    f'prepare {labels} --output=records/train',
    f'check {labels}',
    'plan --config=shapes --topology=cpu:1',
    'bench --config=shapes --what=input',
    'score --annotations=truth.json --results=found.json --output=scores',
  ]
  code = f"""{MAIN}
import contextlib, io
for line in {lines}:
  package = 'matplotlib' if 'score' in line else 'tensorflow'
  with contextlib.redirect_stderr(io.StringIO()) as shown:
    assert main(line.split()) == 2, line
  assert f' needs {{package}}' in shown.getvalue(), shown.getvalue()
from maskrcnn_jax.habana import command
with contextlib.redirect_stderr(io.StringIO()) as shown:
  assert command.main(['--mode=eval', '--model_dir=run']) == 2
assert ' needs tensorflow' in shown.getvalue(), shown.getvalue()
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.export import exporter
try:
  exporter._check_installed(['saved_model'])
except UserError as error:
  print('caught', error.argument, error.wanted)
"""
  shown = export_process.run(code, LEFT_OUT, tmp_path)
  assert 'caught format tensorflow' in shown
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('version, is_to_be_had', [(13, True), (14, False)])
def test_an_extra_is_advised_where_it_helps(monkeypatch, version, is_to_be_had):
  monkeypatch.setattr(sys, 'version_info', (3, version, 0))
  monkeypatch.setattr('importlib.util.find_spec', lambda _: None)
  with pytest.raises(errors.UserError) as caught:
    errors.require('train', 'tensorflow', purpose='eval')
  assert caught.value.wanted == 'tensorflow'
  assert ('pip install' in str(caught.value)) == is_to_be_had
