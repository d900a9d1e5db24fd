"""Fine-tuning end to end by the command: from polygons to results."""

import json

import drawn_checkpoint
import ml_collections
import numpy as np
import pytest
import tiny_run
from PIL import Image, ImageDraw

from maskrcnn_jax.checkpoints import store
from maskrcnn_jax.cli import main as command
from maskrcnn_jax.weights import load_report

NAMES = {1: 'cat', 2: 'dog', 3: 'cow'}


def write_yolo(folder, count=4):
  """Images with two boxes each, their polygons, and the class names."""
  (folder / 'images').mkdir()
  (folder / 'labels').mkdir()
  rng = np.random.default_rng(0)
  for number in range(count):
    image = Image.new('RGBA', (64, 64), (90, 90, 90, 255))
    lines = []
    for class_id in (number % 3, 0):
      x1, y1 = rng.integers(2, 30, 2).tolist()
      x2, y2 = x1 + 24, y1 + 24
      colour = tuple(200 * (np.arange(3) == class_id))
      ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), colour)
      corners = np.array([x1, y1, x2, y1, x2, y2, x1, y2]) / 64
      lines.append(' '.join([str(class_id), *map(str, corners)]))
    image.save(folder / 'images' / f'{number}.png')
    text = '\n'.join(lines) + '\n'
    (folder / 'labels' / f'{number}.txt').write_text(text)
  names = 'names: {0: cat, 1: dog, 2: cow}\n'
  (folder / 'labels' / 'data.yaml').write_text(names)


def run(*arguments, expected=0):
  assert command.main([str(x) for x in arguments]) == expected


@pytest.mark.slow
@pytest.mark.usefixtures('fast_compilation')
def test_from_polygons_to_results_with_their_ids(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write_yolo(tmp_path)
  run(
    *('prepare', '--format=yolo', '--images=images', '--annotations=labels'),
    *('--output=records/own', '--num_workers=1'),
  )
  config = tiny_run.make_config('none', 'none')
  config.model.backbone.norm = 'batch'
  source = drawn_checkpoint.write(tmp_path / 'source', config)
  # The config of the run does not describe the source's network.
  config.model = {
    'num_classes': ml_collections.config_dict.placeholder(int),
    'backbone': {'frozen_stages': 2},
    **{
      name: config.model[name]
      for name in ('train_proposals', 'test_proposals', 'sampling')
    },
    'rpn_targets': {'num_samples': 16},
    'losses': {'rpn_samples': 16},
    'detections': {'max_detections': 6},
  }
  config.input.file_pattern = 'records/own*'
  config.evaluation.file_pattern = 'records/own*'
  config.evaluation.annotations_file = 'records/instances_own.json'
  config.training.update(finetune=True, pretrained='', num_steps=2)
  config.runtime = {'compilation_cache': ''}
  path = tiny_run.write_config(config, tmp_path / 'own.py')
  arguments = (f'--config={path}', '--workdir=run')
  run('train_and_eval', *arguments, expected=2)
  assert 'training.pretrained' in capsys.readouterr().err

  run('train_and_eval', *arguments, '--config.training.pretrained=source')
  out, err = capsys.readouterr()
  assert 'mismatched: 6 ' in out + err
  assert 'box_head/class_logits/bias: is (3,), wanted (4,)' in out + err
  assert store.read_classes('run') == NAMES
  assert store.read_category_ids('run') == {1: 0, 2: 1, 3: 2}
  results = json.loads((tmp_path / 'run/eval/detections-2.json').read_text())
  assert results
  assert {x['category_id'] for x in results} <= {0, 1, 2}
  assert {x['category_id'] for x in results} - {1, 2}
  assert list((tmp_path / 'run/pictures').glob('step-2-image-*.png'))

  old, new = (load_report.flatten(store.restore(x)[0]) for x in (source, 'run'))
  frozen = ('backbone/stem/', 'backbone/stage2/')
  for name, array in new.items():
    if name.startswith(frozen):
      np.testing.assert_array_equal(array, old[name], err_msg=name)
  moved = [x for x in new if x.startswith('fpn/lateral') and 'kernel' in x]
  assert moved and all(np.any(new[x] != old[x]) for x in moved)
