"""Worker processes over the images of a data set."""

import operator
import os

import pytest

from maskrcnn_jax.datasets import workers
from maskrcnn_jax.errors import UserError


@pytest.mark.parametrize('num_workers', [1, 2])
def test_results_come_in_the_order_of_the_tasks(num_workers):
  tasks = ((number, 2) for number in range(30))
  found = workers.map_images(operator.pow, tasks, 30, num_workers)
  assert list(found) == [number**2 for number in range(30)]


def test_no_tasks_give_no_results():
  assert list(workers.map_images(operator.pow, [], 0)) == []


def test_tasks_are_taken_lazily():
  taken = []

  def tasks():
    for number in range(1000):
      taken.append(number)
      yield number, 1

  found = workers.map_images(operator.pow, tasks(), 1000, num_workers=1)
  assert next(found) == 0
  assert len(taken) < 100


def _die_of(number, label):
  if label == 'deadly':
    os.abort()


def _nested(depth):
  return [_nested(depth - 1)] if depth else []


@pytest.mark.parametrize('label', ['deadly', _nested(900)])
def test_an_image_that_no_worker_survives_is_named(label):
  tasks = ((number, label if number == 21 else '') for number in range(30))
  with pytest.raises(UserError) as error:
    list(workers.map_images(_die_of, tasks, 30, num_workers=2))
  assert error.value.item == '21'
