import operator

import pytest

from maskrcnn_jax.datasets import workers


@pytest.mark.parametrize('num_workers', [1, 2])
def test_results_come_in_the_order_of_the_tasks(num_workers):
  tasks = ((number, 2) for number in range(30))
  found = workers.map_images(operator.pow, tasks, 30, num_workers)
  assert list(found) == [number**2 for number in range(30)]


def test_of_nothing_comes_nothing():
  assert list(workers.map_images(operator.pow, [], 0)) == []


def test_tasks_are_taken_when_they_are_needed():
  taken = []

  def tasks():
    for number in range(1000):
      taken.append(number)
      yield number, 1

  found = workers.map_images(operator.pow, tasks(), 1000, num_workers=1)
  assert next(found) == 0
  assert len(taken) < 100
