"""Tables and chart of a result that was made by hand."""

import copy
import json

import pytest

from maskrcnn_jax.benchmarks import measure, report
from maskrcnn_jax.errors import UserError


def _row(name, median, flops=None, least_moved=1e9, accessed=5e9, **more):
  """A measurement; with `flops` that of a compiled program."""
  seconds = {'median': median, 'lowest': 0.5 * median, 'highest': 2 * median}
  row = {'name': name, 'seconds': seconds, 'images_per_second': 2 / median}
  if flops:
    row['program'] = {
      'flops': flops,
      'bytes_accessed': accessed,
      'memory': {'needed': 2**30, 'least_moved': least_moved},
    }
  return row | more


def _ratio(*values):
  return dict(zip(('median', 'lowest', 'highest'), values))


# A machine of 100 GFLOP/s and 10 GB/s.
RESULT = {
  'machine': {
    'device': 'cpu',
    'devices': 1,
    'cpus': 2,
    'jax': '0.10.2',
    'load_before': 0.1,
    'load_after': 1.9,
    'other_cpus': {'step': 0.05, 'profile': 1.25, 'growth': None},
  },
  'memory': {'maskrcnn_jax': 3 * 2**30, 'torchvision': 2**30},
  'peaks': {'float32': 100e9, 'bfloat16': 200e9, 'bandwidth': 10e9},
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
  'tables': {
    'train step': [
      _row('maskrcnn_jax', 4.0, 100e9, 20e9, 30e9),
      _row(
        'torchvision', 5.0, ratio={'median': 0.8, 'lowest': 0.7, 'highest': 0.9}
      ),
      _row(
        'free-running',
        3.2,
        ratio={'median': 1.25, 'lowest': 1.1, 'highest': 1.4},
      ),
    ],
    'kernels of a step': [
      _row('backbone', 3.0, 200e9, share=2 / 3),
      _row('proposals', 1.5, 1e9, share=1 / 3),
      {'name': 'unnamed', 'seconds': {'median': 0.1}, 'program': None},
    ],
    'compilation': [
      {'name': 'cached', 'seconds': {'median': 7.0}, 'trace_seconds': 5.0}
      | {'compile_seconds': 2.0, 'cache_bytes': 12_000_000}
    ],
    'growth': [_row('batch 1', 2.0, 50e9), {'name': 'batch 8'}],
  },
}


@pytest.fixture(name='result')
def fixture_result():
  result = copy.deepcopy(RESULT)
  for rows in result['tables'].values():
    measure.add_floors(rows, result['peaks'], 'float32')
  return result


def _rows(shown, name):
  """Rows that hold a name: their cells by the title of their column."""
  found = []
  for line in shown.splitlines():
    cells = [cell.strip() for cell in line.strip('|').split('|')]
    if cells[0] in ('name', 'what'):
      titles = cells
    elif line.startswith('|') and name in cells:
      found.append(dict(zip(titles, cells, strict=True)))
  return found


def test_the_tables(result):
  shown = report.text(result)
  assert '512x640' in shown and 'Load 0.1 before, 1.9 after' in shown
  assert 'maskrcnn_jax 3 GiB, torchvision 1 GiB' in shown
  (ours,) = _rows(shown, 'maskrcnn_jax')
  assert ours == {
    'name': 'maskrcnn_jax',
    'ms': '4,000',
    'lowest': '2,000',
    'highest': '8,000',
    'images/s': '0.5',
    'our time / theirs': '-',
    'GFLOP': '100',
    'of peak': '25.0%',
    'floor ms': '2,000',
    'bound by': 'memory',
    'gap ms': '2,000',
    'least GB': '20',
    'GB': '30',
    'traffic ms': '3,000',
    'needs GiB': '1',
  }
  (theirs,), (free,) = _rows(shown, 'torchvision'), _rows(shown, 'free-running')
  assert theirs['our time / theirs'] == '0.80 (0.70 to 0.90)'
  assert free['our time / theirs'] == '1.25 (1.10 to 1.40)'
  (stage,) = _rows(shown, 'proposals')
  assert stage['of all'] == '33.3%'
  assert (stage['floor ms'], stage['gap ms']) == ('100', '1,400')
  # 1 s over a floor of 2; 1.4 s over one of 0.1.
  (furthest,) = [x for x in shown.splitlines() if 'proposals, 1,500 ms' in x]
  assert '100 ms' in furthest
  (cached,) = _rows(shown, 'cached')
  assert (cached['Python s'], cached['compiler s']) == ('5', '2')
  assert (cached['ms'], cached['kept MB']) == ('7,000', '12')
  assert 'lowest' not in cached
  (large,) = _rows(shown, 'batch 8')
  assert large['ms'] == '-'


def test_a_warning_of_load_by_other_processes(result):
  assert '1.25 during profile' in report.text(result)
  result['machine']['other_cpus']['profile'] = 0.02
  assert 'during profile' not in report.text(result)


def test_several_runs_in_one_table(result, tmp_path):
  with pytest.raises(UserError) as error:
    report.summary(tmp_path)
  assert error.value.path == str(tmp_path)
  other = copy.deepcopy(result)
  other['subject'] |= {'batch_size': 8}
  records = copy.deepcopy(result)
  records['subject'] |= {'images': 'records/*'}
  records['memory']['before'] = 3 * 2**30
  interrupted = copy.deepcopy(other)
  del interrupted['machine']['load_after']
  for number, values in enumerate((other, result, records, interrupted)):
    folder = tmp_path / str(number)
    folder.mkdir()
    (folder / 'bench.json').write_text(json.dumps(values))
  shown = report.summary(tmp_path)
  rows = _rows(shown, 'maskrcnn_jax')
  assert [(row['batch'], row['images']) for row in rows] == [
    ('2', 'records/*'),
    ('2', 'synthetic'),
    ('8', 'synthetic'),
  ]
  assert len(_rows(shown, '512x640')) == 9
  # What is in use beside what the compiler plans.
  assert [(x['needs GiB'], x['peak GiB']) for x in rows] == [
    ('1', '<= 3'),
    ('1', '3'),
    ('1', '3'),
  ]
  theirs = _rows(shown, 'torchvision')[1]
  assert (theirs['needs GiB'], theirs['peak GiB']) == ('-', '1')


def test_the_chart_has_a_bar_for_each(result, tmp_path):
  panels = {panel.title: panel.bars for panel in report.bar_panels(result)}
  sides = panels['ms of train step (line: floor)']
  assert [bar.value for bar in sides] == [4000, 5000, 3200]
  assert [bar.limit for bar in sides] == [2000, None, None]
  assert sides[0].color != sides[1].color == sides[2].color
  # A batch that did not fit has no bar.
  (bar,) = panels['ms of growth (line: floor)']
  assert (bar.label, bar.value) == ('batch 1', 2000)
  assert [bar.value for bar in panels['GiB needed by growth']] == [1.0]
  assert panels['GiB needed by compilation'] == []
  report.draw(result, tmp_path / 'bench.png')
  assert (tmp_path / 'bench.png').read_bytes()[:4] == b'\x89PNG'
