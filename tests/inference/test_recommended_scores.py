"""`min_score='auto'`: thresholds that stand beside a checkpoint."""

import json
import shutil

import drawn_checkpoint
import jax
import numpy as np
import pytest
import tiny_run
from found import make_found
from PIL import Image

from maskrcnn_jax.checkpoints import (
  checksums,
  retention,
  score_thresholds,
  store,
)
from maskrcnn_jax.cli import main as command
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.inference import views
from maskrcnn_jax.inference.predictor import Predictor
from maskrcnn_jax.training import checkpoint_evaluation

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A checkpoint whose classes 1 and 2 are the categories 0 and 1."""
  config = tiny_run.make_config('none', 'none')
  config.input.canvases = ((64, 96),)
  config.input.image_dtype = 'uint8'
  classes = {
    i: {'name': name, 'category_id': i - 1}
    for i, name in drawn_checkpoint.CLASSES.items()
  }
  folder = tmp_path_factory.mktemp('run') / 'run'
  return drawn_checkpoint.write(folder, config, classes=classes)


@pytest.fixture
def evaluated(workdir):
  """The same with thresholds; that of category 1 between two scores."""
  found = Predictor(workdir)(IMAGE)
  scores = np.unique(found.scores[found.classes == 2])
  # Not one of them: other programs of the same model round otherwise.
  middle = float(np.mean(scores[len(scores) // 2 - 1 : len(scores) // 2 + 1]))
  content = {
    'weights': checksums.model_digest(store.restore(workdir)[0]),
    'all_classes': {'score': 0.0},
    'classes': [
      {'category_id': 0, 'threshold': {'score': 1.0}},
      {'category_id': 1, 'threshold': {'score': middle}},
    ],
  }
  path = workdir / 'eval' / 'classes-4.json'
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(content))
  yield workdir, middle, found
  path.unlink()


def test_without_an_evaluation(workdir, tmp_path):
  for call in (
    lambda: score_thresholds.read(workdir),
    lambda: Predictor(workdir / 'checkpoints' / '4', min_score='auto'),
  ):
    with pytest.raises(UserError) as error:
      call()
    assert error.value.argument == 'min_score'
    assert error.value.path == str(workdir / 'eval' / 'classes-4.json')
  Image.fromarray(IMAGE).save(tmp_path / 'a.png')
  argv = ['predict', f'--workdir={workdir}', f'--output={tmp_path / "out"}']
  argv += ['--min_score=auto', '--images', str(tmp_path / 'a.png')]
  assert command.main(argv) == 2
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('link', ['eval', 'eval/classes-4.json'])
def test_a_link_that_leads_out_of_the_workdir_is_not_followed(
  evaluated, tmp_path, link
):
  received = tmp_path / 'received'
  shutil.copytree(evaluated[0], received)
  (received / link).rename(tmp_path / 'elsewhere')
  (received / link).symlink_to(tmp_path / 'elsewhere')
  with pytest.raises(UserError) as error:
    score_thresholds.read(received)
  assert error.value.path == str(received / 'eval' / 'classes-4.json')
  assert str(tmp_path / 'elsewhere') in error.value.given


@pytest.mark.parametrize('other', [None, 'f' * 64])
def test_thresholds_of_other_weights_are_refused(evaluated, other):
  workdir, file = evaluated[0], evaluated[0] / 'eval' / 'classes-4.json'
  content = json.loads(file.read_text())
  file.write_text(json.dumps({**content, 'weights': other}))
  for call in (
    lambda: score_thresholds.read(workdir),
    lambda: Predictor(workdir, min_score='auto'),
  ):
    with pytest.raises(UserError) as error:
      call()
    assert error.value.path == str(file)
    assert error.value.given == other
    assert error.value.wanted == content['weights']


def test_digest_of_a_saved_model_is_that_of_its_variables(workdir, tmp_path):
  variables, config = store.restore(workdir)
  saved = checksums.read(retention.find(workdir))
  assert checksums.saved_model_digest(saved) == checksums.model_digest(
    variables
  )
  # One bit of one number makes another model.
  first, *rest = jax.tree.leaves(variables)
  other = first.at[(0,) * first.ndim].set(
    np.nextafter(first[(0,) * first.ndim], np.float32(np.inf))
  )
  changed = jax.tree.unflatten(jax.tree.structure(variables), [other, *rest])
  copy = drawn_checkpoint.write(tmp_path / 'copy', config, variables=changed)
  saved = checksums.read(retention.find(copy))
  found = checksums.saved_model_digest(saved)
  assert found == checksums.model_digest(changed)
  assert found != checksums.model_digest(variables)


def test_another_model_is_not_evaluated_among_results(workdir, tmp_path):
  other = shutil.copytree(workdir, tmp_path / 'other')
  config = store.restore(workdir)[1]
  for source in (other, other / 'checkpoints' / '4', 'torchvision.pth'):
    with pytest.raises(UserError) as error:
      checkpoint_evaluation.evaluate(config, workdir, source=str(source))
    assert error.value.argument == '--workdir'
    assert error.value.given == str(source)


def test_predictor_drops_detections_below(evaluated):
  workdir, middle, everything = evaluated
  assert score_thresholds.read(workdir) == {None: 0.0, 1: 1.0, 2: middle}
  found = Predictor(workdir, min_score='auto')(IMAGE)
  keep = (everything.classes == 2) & (everything.scores >= middle)
  assert 0 < np.sum(keep) < np.sum(everything.classes == 2)
  np.testing.assert_array_equal(found.scores, everything.scores[keep])
  np.testing.assert_array_equal(found.masks, everything.masks[keep])


def test_predict_draws_and_counts_with_them(evaluated, tmp_path, capsys):
  workdir, middle, everything = evaluated
  Image.fromarray(IMAGE).save(tmp_path / 'a.png')
  output = tmp_path / 'out'
  argv = ['predict', f'--workdir={workdir}', f'--output={output}']
  argv += ['--min_score=auto', '--save=crops,masks,coco,labelme,yolo']
  argv += ['--images', str(tmp_path / 'a.png')]
  for _ in range(2):  # The second run replaces the files of the first.
    assert command.main(argv) == 0
  drawn = np.sum((everything.classes == 2) & (everything.scores >= middle))
  assert f'with {drawn} objects of the recommended' in capsys.readouterr().out
  results = json.loads((output / 'detections.json').read_text())
  assert len(results) == len(everything.scores) > drawn
  summary = json.loads((output / 'predict.json').read_text())
  assert summary['min_score'] == 'auto'
  assert summary['save'] == ['crops', 'masks', 'coco', 'labelme', 'yolo']
  assert (output / 'index.html').read_text().count('"mask":') == drawn
  for kind in ('crops', 'masks'):
    assert len(list((output / kind).rglob('*.png'))) == drawn
  labels = json.loads((output / 'labels.json').read_text())
  assert labels['images'] == [
    {'id': 1, 'file_name': 'a.png', 'height': 60, 'width': 80}
  ]
  assert {x['id'] for x in labels['categories']} == {0, 1}
  assert {x['category_id'] for x in labels['annotations']} <= {1}
  assert (output / 'yolo' / 'classes.txt').read_text().count('\n') == 2
  assert (output / 'labelme' / 'a.json').is_file()


def test_scores_by_class():
  found = make_found([[0, 0, 4, 4]] * 4, scores=[0.9, 0.7, 0.7, 0.2])
  found = found.replace(classes=np.array([1, 1, 2, 3]))
  kept = views.with_score(found, {None: 0.2, 1: 0.8, 2: 0.7})
  # As float32 0.7 is below 0.7, and is kept all the same.
  np.testing.assert_array_equal(kept.classes, [1, 2, 3])
  assert len(views.with_score(found, 0.7).scores) == 3
