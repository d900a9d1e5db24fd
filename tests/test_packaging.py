"""The wheel: its files, its imports, and a run away from the checkout."""

import itertools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata

import job_process
import pytest
from packaging.requirements import Requirement

import maskrcnn_jax

ROOT = pathlib.Path(__file__).parent.parent
HEAVY = ('tensorflow', 'torch', 'matplotlib', 'tensorflow_datasets')


def _run(*command, **kwargs):
  """Output of a command, which must succeed."""
  done = subprocess.run(
    [str(word) for word in command],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
    **kwargs,
  )
  assert done.returncode == 0, done.stdout[-4000:]
  return done.stdout


def _build(tmp_path_factory, install='all'):
  """A wheel of the checkout, built from a copy so that the tree stays clean."""
  source = tmp_path_factory.mktemp('source')
  ignore = shutil.ignore_patterns('__pycache__', '*.egg-info')
  for name in ('maskrcnn_jax', 'configs', 'data'):
    shutil.copytree(ROOT / name, source / name, ignore=ignore)
  for name in ('setup.py', 'LICENSE', *(p.name for p in ROOT.glob('*.md'))):
    shutil.copy(ROOT / name, source)
  output = tmp_path_factory.mktemp('wheel')
  flags = ['--no-deps', '--no-build-isolation', '-w', output]
  _run(
    *(sys.executable, '-m', 'pip', 'wheel', '-q', *flags, '.'),
    cwd=source,
    env=os.environ | {'MASKRCNN_JAX_INSTALL': install},
  )
  (path,) = output.glob('*.whl')
  return path


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  return _build(tmp_path_factory)


def _required(wheel):
  """Names of the packages that a wheel requires without any extra."""
  (name,) = (x for x in zipfile.ZipFile(wheel).namelist() if 'METADATA' in x)
  text = zipfile.ZipFile(wheel).read(name).decode()
  lines = re.findall(r'^Requires-Dist: ([\w-]+)(.*)$', text, re.MULTILINE)
  return {name.lower() for name, rest in lines if 'extra ==' not in rest}


@pytest.mark.slow
def test_the_wheel_for_predictions_leaves_packages_out(wheel, tmp_path_factory):
  required = _required(wheel)
  left_out = required - _required(_build(tmp_path_factory, 'predict'))
  tensorflow = {'tensorflow', 'tensorflow-cpu', 'tensorflow-datasets'}
  assert left_out == {*tensorflow, 'matplotlib', 'tensorboardx'}
  assert {'jax', 'numpy', 'pillow'} < required


def test_the_files_of_the_wheel(wheel):
  archive = zipfile.ZipFile(wheel)
  files = {name for name in archive.namelist() if '.dist-info/' not in name}
  expected = {
    *(ROOT / 'maskrcnn_jax').rglob('*.py'),
    *(ROOT / 'maskrcnn_jax').rglob('*.html'),
    *(ROOT / 'configs').glob('*.py'),
  }
  prefix = 'maskrcnn_jax/configs/'  # Beside the package in the checkout.
  assert {name.replace(prefix, 'configs/') for name in files} == {
    path.relative_to(ROOT).as_posix() for path in expected
  }
  assert {name.partition('/')[0] for name in files} == {'maskrcnn_jax'}
  texts = {
    pathlib.PurePath(name).name: archive.read(name).decode()
    for name in set(archive.namelist()) - files
  }
  command = 'maskrcnn-jax = maskrcnn_jax.cli.main:main'
  assert command in texts['entry_points.txt']
  assert '>=3.11' in texts['METADATA'] and '<3.15' in texts['METADATA']
  assert 'Apache License' in texts['LICENSE']


def test_importing_loads_nothing_heavy():
  # In one process: the first statement with a package is the one that loads it.
  code = f"""
import sys
for statement in (
  'import maskrcnn_jax',
  'import maskrcnn_jax.cli.main',
  'import maskrcnn_jax.structures',
  'import maskrcnn_jax.training.train_step',
  'import maskrcnn_jax.checkpoints.store',
  'import maskrcnn_jax.visualize',
  'from maskrcnn_jax import ' + ', '.join({maskrcnn_jax.__all__}),
):
  exec(statement)
  loaded = set({HEAVY}) & set(sys.modules)
  assert not loaded, (statement, loaded)
"""
  _run(sys.executable, '-c', code)


def test_the_train_step_needs_no_input_packages():
  blocked = (*HEAVY, 'pycocotools', 'PIL', 'tensorboardX', 'tqdm', 'orbax')
  code = f"""
import sys
for name in {blocked}:
  sys.modules[name] = None  # Makes its import fail.
import maskrcnn_jax as mrj
mrj.MaskRCNN, mrj.create_train_state, mrj.train_step, mrj.detect
mrj.load_config('shapes')
"""
  _run(sys.executable, '-c', code, cwd=ROOT)


def test_there_are_eleven_notebook_names():
  assert set(maskrcnn_jax.__all__) <= set(dir(maskrcnn_jax))
  assert len(maskrcnn_jax.__all__) == 11
  for name in maskrcnn_jax.__all__:
    assert callable(getattr(maskrcnn_jax, name))
  with pytest.raises(AttributeError, match='surprise'):
    _ = maskrcnn_jax.surprise


def _link_requirements(site):
  """Links what the one package of a folder requires into this folder.

  Nothing else, so a package that setup.py does not name cannot be imported.
  """
  (ours,) = metadata.distributions(path=[str(site)])
  waiting = {(text, '') for text in ours.requires}
  done = set()
  while waiting:
    text, extra = wanted = waiting.pop()
    done.add(wanted)
    requirement = Requirement(text)
    if requirement.marker and not requirement.marker.evaluate({'extra': extra}):
      continue
    found = metadata.distribution(requirement.name)
    assert requirement.specifier.contains(found.version, prereleases=True), text
    for name in {path.parts[0] for path in found.files} - {'..', '__pycache__'}:
      if not (site / name).exists():
        (site / name).symlink_to(found.locate_file(name))
    extras = ('', *requirement.extras)
    waiting |= set(itertools.product(found.requires or (), extras)) - done


@pytest.mark.slow
def test_the_wheel_trains_in_a_clean_environment(wheel, tmp_path):
  """A two-step run on drawn shapes, away from the checkout."""
  folder = tmp_path / 'environment'
  venv.create(folder)
  python = folder / 'bin' / 'python'
  pip = [sys.executable, '-m', 'pip', '--python', python, 'install', '-q']
  _run(*pip, '--no-deps', '--no-index', wheel)
  (site,) = folder.glob('lib/python3*/site-packages')
  _link_requirements(site)
  away = {'cwd': tmp_path, 'env': job_process.environment(PYTHONPATH='')}
  where = 'import maskrcnn_jax; print(maskrcnn_jax.__file__)'
  assert str(site) in _run(python, '-c', where, **away)
  records = tmp_path / 'shapes'
  sizes = ['--train', '16', '--val', '8']
  make = ROOT / 'data' / 'shapes' / 'shapes.py'
  _run(python, make, '--output', records, *sizes, **away)
  shown = _run(
    folder / 'bin' / 'maskrcnn-jax',
    'train_and_eval',
    '--config=shapes',
    f'--workdir={tmp_path}/run',
    f'--config.input.file_pattern={records}:train',
    f'--config.evaluation.file_pattern={records}:val',
    f'--config.evaluation.annotations_file={records}/annotations_val.json',
    '--config.evaluation.batch_size=8',
    '--config.input.batch_size=2',
    '--config.training.num_steps=2',
    **away,
  )
  assert 'AP' in shown
  assert (tmp_path / 'run' / 'metrics.jsonl').exists()
