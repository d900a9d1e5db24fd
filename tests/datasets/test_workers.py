"""Worker processes over the images of a data set."""

import operator

import pytest

from maskrcnn_jax.datasets import workers


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
