"""The README's examples run, and its links lead somewhere."""

import pathlib
import re
import subprocess
import sys

import drawn_checkpoint
import numpy as np
import pytest
import quick
from PIL import Image

from maskrcnn_jax.config import load_config

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')
EXAMPLES = re.findall(r'```python\n(.*?)```', README, re.DOTALL)


def test_links_lead_somewhere():
  links = re.findall(r'\]\(([^)#]+)\)', README)
  missing = [
    link
    for link in links
    if not link.startswith('http') and not (ROOT / link).exists()
  ]
  assert links
  assert not missing


@pytest.mark.slow
def test_prediction_example(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  drawn_checkpoint.write(tmp_path / 'local/demo', load_config('shapes'))
  Image.new('RGB', (90, 70), 'teal').save('photo.jpg')
  names = {}
  with quick.compilation():
    exec(EXAMPLES[0], names)
  assert names['picture'].shape == (70, 90, 3)
  assert names['detections'].masks.ndim == 3


@pytest.mark.slow
def test_notebook_example(tmp_path, monkeypatch):
  _, code = EXAMPLES
  assert 'range(200)' in code
  monkeypatch.chdir(tmp_path)
  command = [sys.executable, ROOT / 'data/shapes/shapes.py']
  sizes = ['--output=local/shapes', '--train=16', '--val=4', '--workers=1']
  subprocess.run([*command, *sizes], check=True, capture_output=True)
  names = {}
  *steps, picture = code.replace('range(200)', 'range(2)').strip().split('\n')
  with quick.compilation():
    exec('\n'.join([*steps, f'picture = {picture}']), names)
  assert np.isfinite(names['losses']['total_loss'])
  assert int(names['state'].step) == 2
  assert names['detections'].boxes.shape == (8, 20, 4)
  assert names['picture'].shape == (128, 128, 3)
  assert names['picture'].dtype == np.uint8
