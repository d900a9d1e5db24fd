"""Metric writer: lines that parse, TensorBoard, the bar, means of a window."""

import contextlib
import errno
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
import small_disk

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import scores
from maskrcnn_jax.training import metrics

VALUES = {
  'mask': 0.5,
  'l2_loss': 0.73456,
  'total_loss': 1.23456,
  'learning_rate': 0.001,
}


def lines(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_one_object_a_line(tmp_path):
  with metrics.MetricWriter(tmp_path, num_steps=4) as writer:
    writer.scalars(1, {'train/mask': jnp.float32(0.5), 'train/box': 2})
    writer.scalars(2, {'eval/AP': 0.25})
  assert lines(tmp_path) == [
    {'step': 1, 'train/mask': 0.5, 'train/box': 2.0},
    {'step': 2, 'eval/AP': 0.25},
  ]


def test_a_resumed_run_appends_after_a_truncated_line(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n{"step": 2, "tra')
  with metrics.MetricWriter(tmp_path, num_steps=4, first_step=1) as writer:
    writer.scalars(2, {'train/mask': 0.5})
  last = (tmp_path / 'metrics.jsonl').read_text().splitlines()[-1]
  assert json.loads(last) == {'step': 2, 'train/mask': 0.5}


@pytest.mark.parametrize(
  'name', ['metrics.jsonl', 'eval', 'pictures', 'plugins']
)
def test_nothing_is_written_through_a_link(name, tmp_path):
  workdir, elsewhere = tmp_path / 'run', tmp_path / 'elsewhere'
  workdir.mkdir()
  elsewhere.touch()
  (workdir / name).symlink_to(elsewhere)
  with pytest.raises(UserError) as error:
    metrics.MetricWriter(workdir)
  assert error.value.path == str(workdir / name)
  assert elsewhere.read_bytes() == b''
  (workdir / name).unlink()
  os.mkfifo(workdir / name)
  with pytest.raises(UserError):
    metrics.MetricWriter(workdir)


def test_a_full_disk_is_named_and_costs_a_line(tmp_path, capsys):
  with small_disk.mounted(tmp_path / 'disk', 2**20) as disk:
    path = disk / 'metrics.jsonl'
    writer = metrics.MetricWriter(disk)
    writer.scalars(1, {'train/mask': 0.5})
    with small_disk.nearly_full(disk, 4 * small_disk.PAGE):
      with pytest.raises(OSError) as error:
        for _ in range(999):
          writer.scalars(2, {'train/mask': 0.5})
      assert (error.value.errno, error.value.filename) == (
        errno.ENOSPC,
        str(path),
      )
      # TensorBoard's thread has ended too: it does not block for ever.
      # It writes in blocks, when it gets to it: more than the disk could hold.
      for step in range(20_000):
        writer.board_scalars(step, {'train/mask': 0.5})
      assert str(disk) in capsys.readouterr().err
      with contextlib.suppress(OSError):
        writer.__exit__()
    with metrics.MetricWriter(disk, num_steps=4, first_step=1) as again:
      again.scalars(2, {'train/mask': 0.25})
    assert scores.read(disk, 'train/mask')[1] == 0.5
    assert scores.read(disk, 'train/mask')[2] == 0.25


def test_other_hosts_write_nothing(tmp_path, capsys):
  with metrics.MetricWriter(tmp_path, num_steps=4, enabled=False) as writer:
    writer.scalars(1, {'train/mask': 0.5})
    writer.image(1, 'eval/image', np.zeros((8, 9, 3), np.uint8))
    writer.advance(1)
    writer.show(1, 4, VALUES, rate=1.0)
    writer.board_scalars(1, {'loss': 1.0})
    writer.hyperparameters({'model': {'dtype': 'float32'}})
    writer.print('text')
    assert list(writer.progress([1, 2])) == [1, 2]
    writer.flush()
  assert not any(tmp_path.iterdir())
  assert capsys.readouterr() == ('', '')


def test_what_is_not_finite_is_valid_json(tmp_path):
  with metrics.MetricWriter(tmp_path) as writer:
    writer.scalars(1, {'train/mask': float('nan'), 'train/box': float('inf')})
  assert lines(tmp_path) == [{'step': 1, 'train/mask': None, 'train/box': None}]


def test_tensorboard_gets_scalars_and_pictures(tmp_path):
  with metrics.MetricWriter(tmp_path) as writer:
    writer.scalars(1, {'train/mask': 0.5})
    writer.image(1, 'eval/image', np.zeros((8, 9, 3), np.uint8))
  events = b''.join(p.read_bytes() for p in tmp_path.glob('events.out.*'))
  assert b'train/mask' in events
  assert b'eval/image' in events


def test_tensorboard_gets_the_config(tmp_path):
  with metrics.MetricWriter(tmp_path) as writer:
    writer.hyperparameters(
      {'model': {'dtype': 'bfloat16'}, 'input': {'cache': None}}
    )
    writer.board_scalars(3, {'train/mask_loss': 0.5})
  events = b''.join(p.read_bytes() for p in tmp_path.glob('events.out.*'))
  for word in (b'_hparams_', b'model.dtype', b'bfloat16', b'train/mask_loss'):
    assert word in events
  assert not lines(tmp_path)


def test_without_a_terminal_there_are_plain_lines(tmp_path, capsys):
  with metrics.MetricWriter(tmp_path, num_steps=8) as writer:
    writer.advance(2)
    writer.show(2, 8, VALUES, rate=7.891, note=' (warm-up)')
  assert capsys.readouterr().err == (
    'step 2/8: loss 1.235 (mask 0.5, l2_loss 0.7346), learning rate 0.001, '
    '7.89 images/s (warm-up)\n'
  )


def test_the_bar_starts_where_the_run_continues(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr('sys.stderr.isatty', lambda: True)
  with metrics.MetricWriter(tmp_path, num_steps=8, first_step=5) as writer:
    writer.advance(6)
    writer.show(6, 8, VALUES, rate=7.5)
  error = capsys.readouterr().err
  assert '6/8' in error
  assert 'loss 1.235, 7.5 images/s' in error


def test_means_over_a_window():
  window = [
    {'mask': jnp.float32(1.0), 'learning_rate': jnp.float32(0.5)},
    {'mask': jnp.float32(2.0), 'learning_rate': jnp.float32(0.25)},
  ]
  assert metrics.means(window) == {'mask': 1.5, 'learning_rate': 0.25}
  with pytest.raises(ValueError, match='window'):
    metrics.means([])
