"""Golden tests on recordings with other counts and levels than those here."""

import os
import pathlib
import re
import subprocess
import sys

import other_recordings
import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_golden_tests_take_their_counts_from_the_files(tmp_path):
  other_recordings.write(tmp_path)
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'pytest', '-n', '0', '--disable-warnings'),
      *('-p', 'no:cacheprovider'),
      *(
        'tests/ops/test_anchors_golden.py',
        'tests/ops/test_matching_golden.py',
      ),
      *('tests/ops/test_roi_align_golden.py',),
      *('tests/models/test_losses_golden.py',),
    ],
    cwd=ROOT,
    env={**os.environ, 'MASKRCNN_GOLDEN': str(tmp_path)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout
  passed = re.search(r'(\d+) passed', done.stdout)
  assert passed and int(passed[1]) >= 14, done.stdout
