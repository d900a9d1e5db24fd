"""Tables and chart of a result that was made by hand."""

import copy
import json

import pytest

from maskrcnn_jax.benchmarks import machine, report
from maskrcnn_jax.errors import UserError


def _row(median, flops=None, least_moved=1e9, accessed=5e9, **more):
  """A measurement; with `flops` that of a compiled program."""
  seconds = {'median': median, 'lowest': 0.5 * median, 'highest': 2 * median}
  row = {'seconds': seconds, 'images_per_second': 2 / median, **more}
  if flops:
    row['program'] = {
      'flops': flops,
      'bytes_accessed': accessed,
      'memory': {'needed': 2**30, 'least_moved': least_moved},
    }
  return row


def _compiled(trace, compile_):
  return {
    'trace_seconds': trace,
    'compile_seconds': compile_,
    'seconds': trace + compile_,
  }


# A machine of 100 GFLOP/s and 10 GB/s.
RESULT = {
  'machine': {
    'device': 'cpu',
    'devices': 1,
    'cpus': 2,
    'jax': '0.10.2',
    'load_before': 0.1,
    'load_after': 1.9,
    'other_cpus': {'step': 0.05, 'stages': 1.25, 'growth': None},
  },
  'memory': {'ours': 3 * 2**30, 'torchvision': 2**30},
  'peaks': {
    'flops': {'float32': 100e9, 'bfloat16': 200e9},
    'bandwidth': 10e9,
  },
  'subject': {
    'canvas': [512, 640],
    'batch_size': 2,
    'dtype': 'float32',
    'num_classes': 91,
    'images': 'synthetic',
  },
  'torchvision': {
    'torch': '2.14',
    'torchvision': '0.29',
    'threads': 2,
    'channels_last': False,
  },
  'step': {
    'ours': _row(4.0, 100e9, 20e9, 30e9),
    'torchvision': _row(5.0),
    'torchvision_free': _row(3.2),
    'ratios': {
      'torchvision': {'median': 0.8, 'lowest': 0.7, 'highest': 0.9},
      'torchvision_free': {'median': 1.25, 'lowest': 1.1, 'highest': 1.4},
    },
  },
  'stages': {
    'train': [
      _row(3.0, 200e9, name='backbone'),
      _row(1.5, 1e9, name='proposals'),
    ]
  },
  'compilation': {
    'step': {
      'cold': _compiled(5.0, 70.0),
      'cached': _compiled(5.0, 2.0),
      'cache_bytes': 12_000_000,
    }
  },
  'growth': [
    _row(2.0, 50e9, axis='batch', value=1),
    {
      'axis': 'batch',
      'value': 8,
      'seconds': None,
      'images_per_second': None,
      'program': None,
    },
  ],
  'input': {'rates': {'decode': 250.0}, 'source': 'records'},
}


@pytest.fixture(name='result')
def fixture_result():
  result = copy.deepcopy(RESULT)
  machine.add_floors(result)
  return result


def _rows(shown, *words):
  """Cells of the rows that hold all of these words."""
  lines = [line for line in shown.splitlines() if line.startswith('|')]
  found = [line for line in lines if all(word in line for word in words)]
  return [[x.strip() for x in line.strip('|').split('|')] for line in found]


def test_the_tables(result):
  shown = report.text(result)
  assert '512x640' in shown and 'Load 0.1 before, 1.9 after' in shown
  assert 'maskrcnn_jax 3 GiB, torchvision 1 GiB' in shown
  (ours,) = _rows(shown, 'train step', 'maskrcnn_jax')
  assert ours[2:8] == ['4,000', '2,000', '8,000', '0.5', '-', '100']
  assert ours[8:] == ['25.0%', '1']
  (theirs,) = _rows(shown, 'train step', '| torchvision ')
  assert theirs[6] == '0.80 (0.70 to 0.90)'
  (free,) = _rows(shown, 'free-running')
  assert free[6] == '1.25 (1.10 to 1.40)'
  (stage,) = _rows(shown, '| proposals')
  assert stage[4] == '33.3%'
  assert stage[7:10] == ['100', 'memory', '1,400']
  # 1 s over a floor of 2; 1.4 s over one of 0.1.
  (furthest,) = [x for x in shown.splitlines() if 'proposals, 1,500 ms' in x]
  assert '100 ms' in furthest
  (cached,) = _rows(shown, '| cached')
  assert cached[2:] == ['5', '2', '7', '12']
  (large,) = _rows(shown, '| batch', '| 8 ')
  assert large[2] == '-'
  assert _rows(shown, 'rates.decode')[0][1] == '250'


def test_a_warning_of_load_by_other_processes(result):
  assert '1.25 during stages' in report.text(result)
  result['machine']['other_cpus']['stages'] = 0.02
  assert 'during stages' not in report.text(result)


def test_several_runs_in_one_table(result, tmp_path):
  with pytest.raises(UserError) as error:
    report.summary(tmp_path)
  assert error.value.path == str(tmp_path)
  other = copy.deepcopy(result)
  other['subject'] |= {'batch_size': 8}
  records = copy.deepcopy(result)
  records['subject'] |= {'images': 'records/*'}
  interrupted = copy.deepcopy(other)
  del interrupted['machine']['load_after']
  for number, values in enumerate((other, result, records, interrupted)):
    folder = tmp_path / str(number)
    folder.mkdir()
    (folder / 'bench.json').write_text(json.dumps(values))
  shown = report.summary(tmp_path)
  rows = _rows(shown, 'train step', 'maskrcnn_jax')
  assert [(row[1], row[4]) for row in rows] == [
    ('2', 'real'),
    ('2', 'random'),
    ('8', 'random'),
  ]
  assert len(_rows(shown, '512x640')) == 9


def test_only_measurements_are_shown(result):
  for name in ('stages', 'compilation', 'growth', 'input', 'torchvision'):
    del result[name]
  shown = report.text(result)
  assert 'Stages' not in shown and 'cache' not in shown
  assert [len(x.bars) for x in report.bar_panels(result)] == [3, 0, 0]


def test_the_chart_has_a_bar_for_each(result, tmp_path):
  sides, stages, growth, memory = report.bar_panels(result)
  assert [bar.value for bar in sides.bars] == [4000, 5000, 3200]
  assert [bar.limit for bar in sides.bars] == [2000, None, None]
  assert sides.bars[0].color != sides.bars[1].color == sides.bars[2].color
  assert [bar.label for bar in stages.bars] == ['backbone', 'proposals']
  # A batch that did not fit has no bar.
  assert [(bar.label, bar.value) for bar in growth.bars] == [('batch 1', 2000)]
  assert [bar.value for bar in memory.bars] == [1.0]
  report.draw(result, tmp_path / 'bench.png')
  assert (tmp_path / 'bench.png').read_bytes()[:4] == b'\x89PNG'
