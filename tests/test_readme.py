"""The README's examples run; the links of all pages lead somewhere."""

import pathlib
import re

import drawn_checkpoint
import numpy as np
import pytest
import quick
import shapes
from PIL import Image

from maskrcnn_jax.config import load_config

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')
PAGES = [
  'README.md',
  '.github/CONTRIBUTING.md',
  '.github/SECURITY.md',
  'data/README.md',
  'launch/README.md',
  'tests/golden/README.md',
  *sorted(f'docs/{page.name}' for page in ROOT.glob('docs/*.md')),
]
EXAMPLES = re.findall(r'```python\n(.*?)```', README, re.DOTALL)


def anchors(page):
  """Anchors of the headings of a page, as GitHub makes them."""
  headings = re.findall(r'^#+ (.*)$', page.read_text('utf-8'), re.MULTILINE)
  return {
    re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
    for heading in headings
  }


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
  path = ROOT / page
  for link in re.findall(r'\]\(([^)\s]+)\)', path.read_text('utf-8')):
    if not link.startswith('http'):
      name, _, anchor = link.partition('#')
      target = path.parent / name if name else path
      assert target.exists(), link
      assert not anchor or anchor in anchors(target), link


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
  sizes = ['--output=local/shapes', '--train=16', '--val=4', '--workers=1']
  assert shapes.main(sizes) == 0
  names = {}
  *steps, picture = code.replace('range(200)', 'range(2)').strip().split('\n')
  with quick.compilation():
    exec('\n'.join([*steps, f'picture = {picture}']), names)
  assert np.isfinite(names['losses']['total_loss'])
  assert int(names['state'].step) == 2
  assert names['detections'].boxes.shape == (8, 20, 4)
  assert names['picture'].shape == (128, 128, 3)
  assert names['picture'].dtype == np.uint8
