"""Memory of the machine, or of the container, and what fits into it."""

import pytest

from maskrcnn_jax.input_pipeline import memory

GIB = 2**30


def write(root, files):
  for name, text in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
  'files, expected',
  [
    ({'proc/meminfo': 'MemTotal:       67108864 kB\nMemFree: 1 kB\n'}, 64),
    (
      {
        'proc/meminfo': 'MemTotal: 67108864 kB\n',
        'sys/fs/cgroup/memory.max': f'{24 * GIB}\n',
      },
      24,
    ),
    (
      {
        'proc/meminfo': 'MemTotal: 67108864 kB\n',
        'sys/fs/cgroup/memory.max': 'max\n',
      },
      64,
    ),
    (
      {
        'proc/meminfo': 'MemTotal: 67108864 kB\n',
        # Version 1 says "no limit" by a number larger than any memory.
        'sys/fs/cgroup/memory/memory.limit_in_bytes': '9223372036854771712\n',
      },
      64,
    ),
    (
      {'sys/fs/cgroup/memory/memory.limit_in_bytes': f'{8 * GIB}\n'},
      8,
    ),
  ],
)
def test_the_smallest_limit_counts(tmp_path, files, expected):
  write(tmp_path, files)
  assert memory.limit_bytes(tmp_path) == expected * GIB


def test_without_any_word_there_is_no_plenty(tmp_path, monkeypatch):
  assert memory.limit_bytes(tmp_path) is None
  monkeypatch.setattr(memory, 'limit_bytes', lambda: None)
  assert not memory.is_plenty()
  assert not memory.fits(1)
  assert memory.share_bytes() is None


def test_records_fit_into_half_of_the_memory_of_45_gib_and_more(monkeypatch):
  monkeypatch.delenv('OMPI_COMM_WORLD_LOCAL_SIZE', raising=False)
  monkeypatch.setattr(memory, 'limit_bytes', lambda: 44 * GIB)
  assert not memory.fits(1)
  monkeypatch.setattr(memory, 'limit_bytes', lambda: 45 * GIB)
  assert memory.fits(22 * GIB)
  assert not memory.fits(23 * GIB)
  # Two processes of one machine keep the records twice.
  monkeypatch.setenv('OMPI_COMM_WORLD_LOCAL_SIZE', '2')
  assert not memory.fits(22 * GIB)
  assert memory.fits(11 * GIB)


def test_half_of_any_memory_may_be_kept(monkeypatch):
  monkeypatch.delenv('OMPI_COMM_WORLD_LOCAL_SIZE', raising=False)
  monkeypatch.setattr(memory, 'limit_bytes', lambda: 24 * GIB)
  assert memory.share_bytes() == 12 * GIB
  monkeypatch.setenv('OMPI_COMM_WORLD_LOCAL_SIZE', '3')
  assert memory.share_bytes() == 4 * GIB


def test_this_machine_has_some_memory():
  assert memory.limit_bytes() > 2**28
