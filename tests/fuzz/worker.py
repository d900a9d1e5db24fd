"""Process that reads mutated files, each within limits of time and memory.

Reads lines `TARGET SEED` and answers each with a line of JSON: `outcome`,
'value', 'error' or 'bug', and `detail`. A case that ends the process has no
answer; `FOLDER/case_TARGET` still holds the input.
"""

import json
import os
import pathlib
import random
import resource
import shutil
import sys
import time
import traceback

VALID = 'valid'  # In place of a seed: the file as it is.
# Of one case, beyond what the process has already.
SECONDS = 5
BYTES = 1536 * 2**20
_OWN = ('open', 'os.remove', 'os.rename', 'os.rmdir', 'os.mkdir')
_FOREIGN = (
  *('subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn'),
  *('os.fork', 'socket.connect'),
)
_MISUSE = []


def _watch(folder):
  """Notes programs that are started and files that change outside."""
  allowed = tuple(map(str, (folder, '/dev/', '/proc/')))

  def hook(event, arguments):
    if event in _FOREIGN:
      _MISUSE.append(f'{event} {arguments}')
    elif event in _OWN and isinstance(arguments[0], str):
      changes = event != 'open' or arguments[2] & (os.O_WRONLY | os.O_RDWR)
      path = os.path.realpath(arguments[0])
      if changes and not path.startswith(allowed):
        _MISUSE.append(f'{event} {path}')

  sys.addaudithook(hook)


def _limit():
  """Gives the next case its share of time and memory."""
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
  used = pages * resource.getpagesize()
  for kind, amount in (
    (resource.RLIMIT_AS, used + BYTES),
    (resource.RLIMIT_CPU, int(time.process_time()) + SECONDS + 1),
  ):
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (amount, hard))


def _run(folder, base, target, seed):
  import mutations
  import targets

  make, read = targets.TARGETS[target]
  if not (base / target).exists():
    (base / target).mkdir(parents=True)
    make(base / target)
  shutil.rmtree(folder, ignore_errors=True)
  shutil.copytree(base / target, folder)
  rng = random.Random(f'{target} {seed}')
  files = sorted(x for x in folder.rglob('*') if x.is_file())
  # Most of a checkpoint is numbers under checksums.
  texts = [x for x in files if x.read_bytes()[:1] in (b'{', b'[')]
  path = rng.choice(texts if texts and rng.random() < 0.5 else files)
  if seed != VALID:
    path.write_bytes(mutations.mutate(rng, path.name, path.read_bytes()))
  _MISUSE.clear()
  _limit()
  start = time.process_time()
  try:
    read(folder, path)
    outcome, detail = 'value', ''
  except Exception as error:
    outcome, detail = _judge(error, folder)
  seconds = time.process_time() - start
  if seconds > SECONDS:
    outcome, detail = 'bug', f'took {seconds:.1f} s'
  if _MISUSE:
    outcome, detail = 'bug', '; '.join(_MISUSE)
  return {'outcome': outcome, 'detail': detail, 'path': str(path)}


def _judge(error, folder):
  from maskrcnn_jax.errors import UserError

  where = [getattr(error, x, None) for x in ('path', 'filename')]
  text = f'{error} {where}'
  known = isinstance(error, UserError | OSError) or 'export' in folder.name
  if not known or 'MemoryError' in text or 'bad_alloc' in text:
    return 'bug', ''.join(traceback.format_exception(error))[-3000:]
  names = [x.name for x in folder.rglob('*')] + [folder.name]
  if not any(name in text for name in names):
    return 'bug', f'names no file: {type(error).__name__}: {error}'
  return 'error', f'{type(error).__name__}: {error}'[:300]


def main():
  """Answers lines until the input ends."""
  folder = pathlib.Path(sys.argv[1])
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  _watch(folder)
  for line in sys.stdin:
    target, seed = line.split()
    found = _run(folder / f'case_{target}', folder / 'base', target, seed)
    answers.write(json.dumps(found) + '\n')
    answers.flush()


if __name__ == '__main__':
  main()
