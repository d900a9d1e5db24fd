"""The notebook runs from its first cell to its last, and holds no outputs."""

import base64
import io
import json
import os
import pathlib

import numpy as np
import pytest
import quick
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOK = ROOT / 'launch' / 'quickstart.ipynb'


def cells(kind):
  notebook = json.loads(NOTEBOOK.read_text(encoding='utf-8'))
  return [cell for cell in notebook['cells'] if cell['cell_type'] == kind]


def test_outputs_are_stripped():
  assert len(cells('code')) > 10
  for cell in cells('code'):
    assert cell['outputs'] == []
    assert cell['execution_count'] is None
    assert cell['metadata'] == {}
  assert not [cell for cell in cells('markdown') if cell.get('attachments')]


def test_lines_fit_a_page():
  for cell in cells('code'):
    assert all(len(line.rstrip('\n')) <= 80 for line in cell['source'])


@pytest.mark.long
def test_it_runs(tmp_path, monkeypatch):
  import nbclient
  import nbformat

  # Few steps, and programs that are not worth much thought.
  monkeypatch.setenv('QUICKSTART_TRIAL', str(tmp_path / 'shapes'))
  monkeypatch.setenv('XLA_FLAGS', quick.xla_flags())
  # A user's settings of Jupyter and IPython are not those of the test.
  monkeypatch.setenv('IPYTHONDIR', str(tmp_path / 'ipython'))
  monkeypatch.setenv('JUPYTER_CONFIG_DIR', str(tmp_path / 'jupyter'))
  paths = [str(ROOT), os.environ.get('PYTHONPATH', '')]
  monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, paths)))
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  nbformat.validate(notebook)
  nbclient.NotebookClient(
    notebook,
    timeout=300,
    resources={'metadata': {'path': str(NOTEBOOK.parent)}},
  ).execute()
  figures = []
  for cell in notebook.cells:
    outputs = cell.get('outputs', [])
    shown = [x['data'] for x in outputs if x.output_type == 'display_data']
    figures += [x['image/png'] for x in shown if 'image/png' in x]
    is_plot = cell.cell_type == 'code' and (
      'plt.show()' in cell.source or '\nshow(' in cell.source
    )
    # `show` itself is defined in a cell, and shows nothing there.
    assert len(shown) == (is_plot and 'def show(' not in cell.source)
  assert len(figures) == 7
  for figure in figures:
    picture = Image.open(io.BytesIO(base64.b64decode(figure)))
    assert np.asarray(picture.convert('L')).std() > 5
