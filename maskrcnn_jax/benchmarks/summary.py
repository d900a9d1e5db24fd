"""One table of the results in the folders of a folder.

`python -m maskrcnn_jax.benchmarks.summary FOLDER`, as `launch/bench_gpu.sh`
ends.
"""

import json
import pathlib
import sys

from maskrcnn_jax.benchmarks import report


def summary(folder: str) -> str:
  """A table of all `bench.json` below a folder, smaller batches first.

  Raises:
    FileNotFoundError: there is none.
  """
  paths = sorted(pathlib.Path(folder).glob('*/bench.json'))
  results = [json.loads(path.read_text()) for path in paths]
  # What was stopped in the middle has no floors, and no load at the end.
  results = [x for x in results if 'load_after' in x['machine']]
  if not results:
    raise FileNotFoundError(f'{folder} holds no results: no */bench.json.')
  results.sort(
    key=lambda x: (x['subject']['images'], x['subject']['batch_size'])
  )
  return report.comparison(results)


if __name__ == '__main__':
  try:
    print(summary(sys.argv[1]))
  except FileNotFoundError as error:
    sys.exit(str(error))
