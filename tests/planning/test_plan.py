"""Plans of a tiny model, for CPU devices and for a described TPU slice."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import quick
import tiny_run

from maskrcnn_jax import charts
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.planning import plan, report, topologies
from maskrcnn_jax.training import train_state

ROOT = pathlib.Path(__file__).parents[2]


def _make_config():
  config = tiny_run.make_config('no data is read', 'none')
  config.input.batch_size = 2
  config.optimizer.tuned_batch_size = 2
  return config


def _run(folder, *flags, **variables):
  """The rows of `maskrcnn-jax plan`, and its printed tables."""
  path = tiny_run.write_config(_make_config(), folder / 'tiny.py')
  paths = [str(ROOT), os.environ.get('PYTHONPATH', '')]
  environment = os.environ | {
    'PYTHONPATH': os.pathsep.join(filter(None, paths)),
    'XLA_FLAGS': quick.xla_flags(),
    **variables,
  }
  words = [f'--config={path}', f'--output={folder / "out"}', *flags]
  done = subprocess.run(
    [sys.executable, '-m', 'maskrcnn_jax', 'plan', *words],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads((folder / 'out' / 'plan.json').read_text()), done.stdout


def _gradient_bytes(config):
  """Bytes of the gradients of all parameters."""
  model = MaskRCNN.from_config(config.model)
  variables = jax.eval_shape(
    lambda key: train_state.init_variables(model, key), jax.random.key(0)
  )
  return sum(4 * x.size for x in jax.tree.leaves(variables['params']))


@pytest.fixture(scope='module')
def planned(tmp_path_factory):
  folder = tmp_path_factory.mktemp('plan')
  flags = '--topology=cpu:1,cpu:2', '--batch_per_device=2', '--breakdown'
  return folder, *_run(folder, *flags)


@pytest.mark.slow
def test_devices_batch_and_learning_rate(planned):
  rows = planned[1]
  assert [row['devices'] for row in rows] == [1, 2]
  assert [row['batch_size'] for row in rows] == [2, 4]
  # The rate of the config is for 2 images.
  assert [row['learning_rate'] for row in rows] == pytest.approx([0.01, 0.02])
  assert [row['hosts'] for row in rows] == [1, 1]
  assert rows[0]['canvas'] == [64, 64]


@pytest.mark.slow
def test_memory_is_that_of_the_state_and_does_not_grow_with_the_devices(
  planned,
):
  gradients = _gradient_bytes(_make_config())
  one, two = (row['memory'] for row in planned[1])
  for memory in (one, two):
    # Parameters and momentum, and the batch.
    assert 2 * gradients < memory['arguments'] < 3 * gradients
    assert memory['aliased'] >= 2 * gradients  # The state is donated.
    assert memory['temporaries'] > 0
    assert memory['needed'] > memory['arguments']
    assert memory['fits']
  assert two['needed'] == pytest.approx(one['needed'], rel=0.1)


@pytest.mark.slow
def test_all_reduces_are_the_gradients(planned):
  one, two = (row['collectives'] for row in planned[1])
  assert one == []
  outside = [x for x in two if x['times'] is not None]
  total = sum(x['bytes'] for x in outside if x['kind'] == 'all-reduce')
  gradients = _gradient_bytes(_make_config())
  # Each once, and the sums that make losses and their means.
  assert gradients <= total < gradients + 512
  assert {x['kind'] for x in two} <= {'all-reduce', 'all-gather'}
  for x in two:
    if x['kind'] == 'all-gather':
      assert x['source'].endswith('top_k')


@pytest.mark.slow
def test_work_and_input(planned):
  rows = planned[1]
  for row in rows:
    assert row['flops'] == pytest.approx(2 * row['flops_per_image'])
    assert row['bytes_accessed'] > 0
    assert row['compile_seconds'] > 0
    assert row['time'] is None  # The chip is unknown.
  image = 64 * 64 * 3 * 4
  instances = 4 * (4 * 4 + 4 + 28 * 28 + 1)
  others = 8 + 1 + 8 + 8 + 8  # Sizes twice, valid, id and scales.
  assert rows[0]['input'] == {'bytes_per_image': image + instances + others}


@pytest.mark.slow
def test_nearly_all_work_is_of_named_stages(planned):
  one, two = (row['breakdown'] for row in planned[1])
  found = {(x['stage'], x['pass']) for x in one['stages']}
  both = 'backbone stem', 'backbone stage2', 'FPN', 'RPN head', 'RoIAlign 7x7'
  both += 'RoIAlign 14x14', 'box head', 'mask head', 'mask loss'
  once = 'images', 'RPN targets', 'proposals', 'sampling', 'mask targets'
  once += 'RPN losses', 'box losses'
  assert {(x, 'backward') for x in both} <= found
  assert {(x, 'forward') for x in both + once} <= found
  assert ('optimizer', '') in found
  for row in planned[1]:
    named = sums = 0
    for stage in row['breakdown']['stages']:
      sums += stage['bytes']
      named += stage['bytes'] * (' name' not in stage['stage'])
    assert named > 0.9 * sums
    # The compiler knows which part of an array is read.
    assert row['bytes_accessed'] < 1.01 * sums
    flops = sum(stage['flops'] for stage in row['breakdown']['stages'])
    assert 0.5 * row['flops'] < flops < 1.01 * row['flops']
  assert one['instructions']['all-reduce'] == 0
  counted = sum(x['count'] for x in planned[1][1]['collectives'])
  assert two['instructions']['all-reduce'] == counted > 0


@pytest.mark.slow
def test_tables_and_chart(planned):
  folder, rows, shown = planned
  lines = [line for line in shown.splitlines() if line.startswith('|')]
  assert sum(line.startswith('| cpu:2 ') for line in lines) >= 4
  assert (folder / 'out' / 'plan.png').read_bytes()[:4] == b'\x89PNG'
  # Memory and collectives; there is no time to show.
  memory, _ = report.bar_panels(rows)
  assert [bar.label.split(',')[0] for bar in memory.bars] == ['cpu:1', 'cpu:2']


def test_other_errors_of_the_compiler_have_no_memory():
  assert plan.needed_memory('INTERNAL: Used 3G of 2G hbm') is None
  assert plan.needed_memory('RESOURCE_EXHAUSTED: no idea') is None


def test_memory_in_an_error_of_the_compiler():
  message = (
    'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.50G of '
    '15.75G hbm. Exceeded hbm capacity by 5.75G.'
  )
  assert plan.needed_memory(message) == int(21.5 * 2**30)


# Fields that do not depend on the program.
ROW = {
  'topology': 'v5e:1x1',
  'devices': 1,
  'hosts': 1,
  'batch_per_device': 2,
  'batch_size': 2,
  'learning_rate': 0.01,
  'input': {'bytes_per_image': 1000},
}


class _Refused:
  """A lowered step that needs too much memory."""

  def compile(self, options):
    raise jax.errors.JaxRuntimeError(
      'RESOURCE_EXHAUSTED: Used 1.50T of 15.75G hbm.'
    )


def _slice_of_one():
  """The CPU under the name of a known chip."""
  chip = topologies.CHIPS['v5e']
  return topologies.Topology('v5e:1x1', jax.devices()[:1], 1, chip)


def test_a_step_that_does_not_fit_is_a_row():
  values = plan.compile_step(_Refused(), _slice_of_one(), 2)
  assert values['memory'] == {
    'needed': int(1.5 * 2**40),
    'capacity': 16 * 2**30,
    'usable': 16 * 2**30,
    'fits': False,
  }
  assert values['time'] is None
  row = ROW | values
  shown = report.text([row])
  assert '| NO ' in shown and '| 1536.00 ' in shown
  (panel,) = report.bar_panels([row])
  assert panel.bars[0].color == charts.RED
  assert (panel.bars[0].value, panel.bars[0].limit) == (1536.0, 16.0)


def test_a_step_that_fits_is_a_row():
  lowered = jax.jit(lambda x: x @ x.T).lower(jnp.ones([256, 512]))
  values = plan.compile_step(lowered, _slice_of_one(), 2)
  memory = values['memory']
  assert memory['arguments'] == 256 * 512 * 4
  assert memory['outputs'] == 256 * 256 * 4
  assert memory['needed'] >= memory['arguments'] + memory['outputs']
  assert memory['fits']
  assert values['flops'] == pytest.approx(2 * 256 * 256 * 512, rel=0.01)
  assert values['flops_per_image'] == values['flops'] / 2
  assert values['collectives'] == []
  time = values['time']
  assert time['compute'] == values['flops'] / 197e12
  assert time['network'] == 0
  assert time['source'] in ('roofline', 'compiler')
  assert time['images_per_second'] == 2 / time['step_seconds']
  assert '| yes ' in report.text([ROW | values])
  # Memory, collectives and time.
  assert [len(x.bars) for x in report.bar_panels([ROW | values])] == [1, 1, 1]


@pytest.mark.parametrize(
  'fixed, each, largest, tries',
  [
    (3, 2, 48, 4),  # 1, 2, 48, 49.
    (3, 96, 1, 2),
    (150, 1, 0, 1),
    (90.5, 1, 9, 4),
  ],
)
def test_largest_batch_that_fits(fixed, each, largest, tries):
  tried = []

  def memory_of(batch):
    tried.append(batch)
    needed = fixed + each * batch
    return {'needed': needed, 'usable': 99.6, 'fits': needed <= 99.6}

  assert plan.search_largest(memory_of) == largest
  assert len(tried) == len(set(tried)) == tries


def test_largest_batch_where_memory_jumps():
  def memory_of(batch):
    needed = 10 * batch + 30 * (batch > 4)
    return {'needed': needed, 'usable': 85, 'fits': needed <= 85}

  assert plan.search_largest(memory_of) == 5


def test_largest_batch_needs_a_known_memory():
  with pytest.raises(UserError) as error:
    plan.plan(_make_config(), ['cpu:1'], plan.LARGEST)
  assert error.value.argument == 'batch_per_device'


def test_files_of_a_user_stay(tmp_path):
  (tmp_path / 'plan.png').write_text('mine')
  with pytest.raises(UserError) as error:
    plan.plan(_make_config(), ['cpu:1'], [2], str(tmp_path))
  assert error.value.argument == '--output'
  assert (tmp_path / 'plan.png').read_text() == 'mine'


@pytest.mark.slow
def test_detection(capsys):
  (row,) = plan.plan(_make_config(), ['cpu:1'], [2], what='inference')
  gradients = _gradient_bytes(_make_config())
  # Parameters without momentum, and the images.
  assert gradients < row['memory']['arguments'] < 2 * gradients
  assert row['memory']['aliased'] == 0
  assert row['learning_rate'] is None
  assert row['input'] == {'bytes_per_image': 64 * 64 * 3 * 4 + 8}
  assert '| cpu:1 ' in capsys.readouterr().out


@pytest.mark.slow
def test_a_described_slice_of_tpus(tmp_path):
  pytest.importorskip('libtpu')
  rows, shown = _run(tmp_path, '--topology=v5e:2x2', '--batch_per_device=1')
  (row,) = rows
  assert row['device_kind'] == 'TPU v5 lite'
  assert (row['devices'], row['hosts'], row['batch_size']) == (4, 1, 4)
  assert 0 < row['memory']['needed'] < row['memory']['capacity']
  assert row['time']['step_seconds'] > 0
  assert row['input']['images_per_second_per_host'] > 0
  outside = [x for x in row['collectives'] if x['times'] is not None]
  total = sum(x['bytes'] for x in outside if x['kind'] == 'all-reduce')
  gradients = _gradient_bytes(_make_config())
  # That compiler adds up some gradients in parts.
  assert gradients <= total < 1.1 * gradients
  assert 'v5e:2x2' in shown


@pytest.mark.slow
def test_described_gpus(tmp_path):
  pytest.importorskip('jax_plugins.xla_cuda12')
  dumped = tmp_path / 'programs'
  rows, shown = _run(
    tmp_path,
    *('--topology=h100:2', '--batch_per_device=1'),
    XLA_FLAGS=f'--xla_dump_to={dumped}',
  )
  (row,) = rows
  assert row['device_kind'] == 'NVIDIA H100 80GB HBM3'
  assert (row['devices'], row['hosts'], row['batch_size']) == (2, 1, 2)
  assert 0 < row['memory']['needed'] < row['memory']['capacity']
  assert row['flops'] > 0 and row['bytes_accessed'] > 0
  assert row['time']['step_seconds'] > 0
  assert {x['kind'] for x in row['collectives']} == {'all-reduce'}
  assert {x['times'] for x in row['collectives']} == {1}
  assert 'h100:2' in shown
  # Machine code was made.
  assert list(dumped.glob('*train_step*.ptx'))
