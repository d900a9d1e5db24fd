"""What the processes of a job tell each other about results."""

import itertools
import json

import jax
import numpy as np
from jax.experimental import multihost_utils


def as_first_says(flag: bool) -> bool:
  """The flag of the first process, in all of them; all must ask."""
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


def own_rows(tree, num_rows: int):
  """This process' rows of what was computed for those of all.

  Args:
    tree: arrays `[rows of all processes, ...]`.
    num_rows: of each process.
  """
  if jax.process_count() == 1:
    return tree
  start = jax.process_index() * num_rows
  return jax.tree.map(lambda x: np.asarray(x)[start : start + num_rows], tree)


def gather(values: list) -> list:
  """The values of all processes in their order; [] on all but the first.

  Args:
    values: of this process, in types of JSON.
  """
  if jax.process_count() == 1:
    return values
  text = np.frombuffer(json.dumps(values).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.array(len(text)))
  padded = np.zeros(np.max(lengths), np.uint8)
  padded[: len(text)] = text
  texts = multihost_utils.process_allgather(padded)
  if jax.process_index() != 0:
    return []
  parts = [json.loads(bytes(t[:n])) for t, n in zip(texts, lengths)]
  return list(itertools.chain.from_iterable(parts))
