"""Note of a run on its training records, to notice that they were changed.

The position of a run is a number of examples: with other records it leads to
other images than an undisturbed run would see.
"""

import hashlib
import json
import logging
import os
import pathlib

from maskrcnn_jax.checkpoints import containment
from maskrcnn_jax.datasets import record_index

FILE = 'training_records.json'


def check(config, workdir: str | os.PathLike, step: int) -> dict[str, str]:
  """The note on the records of a config, as `store.claim_workdir` keeps it.

  Warns if a run goes on with records that its workdir has no note on.

  Args:
    config: a ConfigDict with the section `input`.
    workdir: directory of the run.
    step: that the run goes on from; 0: it is new.
  """
  pattern = config.input.file_pattern
  index = record_index.index_records(pattern, config.input.get('split'))
  digest = hashlib.sha256()
  # Neither names nor numbers of files matter for the order of the data.
  for column in (index.image_ids, index.lengths, index.heights, index.widths):
    digest.update(column.tobytes())
  note = {'num_records': len(index), 'sha256': digest.hexdigest()}
  known = [*_known(workdir)] if step else []
  if known and note not in known:
    logging.warning(
      'The %d training records %s are not those that %s was trained on up to '
      'step %d (%s records): from here on it sees other data than a run '
      'without a break would.',
      *(len(index), pattern, workdir, step, known[-1].get('num_records')),
    )
  return {FILE: json.dumps(note) + '\n'}


def _known(workdir):
  """Yields the notes in a workdir."""
  name = pathlib.PurePath(FILE)
  for path in sorted(pathlib.Path(workdir).glob(f'{name.stem}*{name.suffix}')):
    containment.check_links(path, workdir)
    note = containment.read_json(path)
    if isinstance(note, dict):
      yield note
