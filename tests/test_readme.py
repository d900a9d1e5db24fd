"""The README's example runs, and its links lead somewhere."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import quick

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')


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
def test_notebook_example(tmp_path, monkeypatch):
  (code,) = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
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
