"""Output to a terminal: foreign control characters are shown as text."""

import io
import json
import sys

import pytest
import tqdm
from PIL import Image

from maskrcnn_jax import tables
from maskrcnn_jax.cli import main as command
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.terminal import escaped, escaped_streams

# Clears the screen and sets the title, in 7 and 8 bits; forges a line; turns
# the text around; half of a character.
HOSTILE = '\x1b[2J\x1b]0;t\x07\x9b2J\rb\nERROR\u202e\u2028\x7f\ud800'
SHOWN = (
  r'\x1b[2J\x1b]0;t\x07\x9b2J\rb\nERROR\u202e\u2028\x7f\ud800'  # As typed.
)


class Stream(io.StringIO):
  def __init__(self, is_terminal=False, encoding='utf-8'):
    super().__init__()
    self._is_terminal, self._encoding = is_terminal, encoding

  encoding = property(lambda self: self._encoding)

  def isatty(self):
    return self._is_terminal


def test_escaped():
  assert escaped(HOSTILE) == SHOWN
  for text in ('', 'a cat', 'été 猫 😀', 'narrow\u202fspace'):
    assert escaped(text) == text
  assert escaped('a\tb\n\x1b', kept='\n\t') == 'a\tb\n\\x1b'


@pytest.mark.parametrize('encoding', ['utf-8', 'ascii'])
def test_streams(encoding, monkeypatch):
  out = Stream(encoding=encoding)
  monkeypatch.setattr(sys, 'stdout', out)
  with escaped_streams():
    print(HOSTILE, '猫', end='\n\n')
    sys.stdout.writelines(['\x1b', '\r'])
  assert sys.stdout is out
  # Line breaks are the program's own here.
  cat = '猫' if encoding == 'utf-8' else r'\u732b'
  shown = SHOWN.replace(r'\n', '\n')
  assert out.getvalue() == f'{shown} {cat}\n\n\\x1b\\r'


def test_a_progress_bar_moves_on_a_terminal_alone(monkeypatch):
  shown = {}
  for is_terminal in (True, False):
    monkeypatch.setattr(sys, 'stderr', Stream(is_terminal))
    with escaped_streams():
      for _ in tqdm.tqdm(range(2), desc='a\x1b[2J\rb', mininterval=0):
        for _ in tqdm.trange(2, mininterval=0):  # Below the other one.
          pass
    shown[is_terminal] = sys.stderr.getvalue()
  for text in shown.values():
    assert '\x1b[2J' not in text and r'a\x1b[2J\rb' in text
  assert '\r' in shown[True] and '\x1b[A' in shown[True]
  assert '\r' not in shown[False] and '\x1b' not in shown[False]


def test_a_name_stays_in_its_line():
  lines = tables.table([{'a': HOSTILE, 'b\n': '1'}]).splitlines()
  assert len(lines) == 3 and SHOWN in lines[2]
  error = UserError(f'{HOSTILE} is missing.', path=HOSTILE)
  assert str(error) == f'{SHOWN} is missing.' and error.path == HOSTILE
  error = UserError(f'a, {HOSTILE}', item=['a', HOSTILE])
  assert str(error) == f'a, {SHOWN}'


@pytest.mark.parametrize('verb', ['check', 'prepare'])
def test_names_of_a_data_set(verb, tmp_path, capfd):
  name, known = HOSTILE[:-1], SHOWN.removesuffix(r'\ud800')
  Image.new('RGB', (50, 40)).save(tmp_path / 'a.jpg')
  images = [
    {'id': number, 'file_name': file, 'height': 40, 'width': 50}
    for number, file in enumerate(('a.jpg', f'{name}.jpg'))
  ]
  category = {'id': 1, 'name': name}
  thing = {'id': 1, 'image_id': 0, 'category_id': 1, 'bbox': [5, 5, 9, 9]}
  thing['segmentation'] = name
  content = {'images': images, 'annotations': [thing], 'categories': [category]}
  path = tmp_path / f'{name}.json'
  path.write_text(json.dumps(content))
  argv = [verb, f'--images={tmp_path}', f'--annotations={path}']
  argv += [f'--output={tmp_path}/out'] * (verb == 'prepare')
  assert command.main(argv) in (1, 2)
  shown = ''.join(capfd.readouterr())
  assert all(x.isprintable() for x in shown.replace('\n', ''))
  assert known in shown and '\nERROR' not in shown
