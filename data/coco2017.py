"""COCO 2017 from the network to record files; see data/README.md.

The folder it makes is laid out as by the reference implementations:
  raw-data/      the zips, and the images in train2017, val2017, test2017
  annotations/   eight json files
  train-00000-of-00256.tfrecord ..., val-00000-of-00032.tfrecord ...
"""

import argparse
import contextlib
import errno
import glob
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

import curl

from maskrcnn_jax import files
from maskrcnn_jax.errors import UserError

STAGES = ('download', 'extract', 'train', 'val')
NUM_SHARDS = {'train': 256, 'val': 32}  # As the reference converter writes.
FILES = pathlib.Path(__file__).with_name('coco2017_files.txt')
# Needs of the stages, checked before gigabytes are downloaded.
_PROGRAMS = ('curl', 'unzip')
_PACKAGES = ('numpy', 'PIL', 'pycocotools', 'tensorflow', 'tqdm')
# Bytes made of a byte of zip, for the check of the disk: images are compressed
# already, annotations are text; records add masks to the images.
_GROWTH = {'zips': 1.01, 'annotations': 4.0}
_RECORDS_GROWTH = 1.1
# Names to extract alone, where some are missing; more: the whole zip.
_MOST_MEMBERS = 1000
_UNZIP_DISK_FULL = 50  # Exit code of unzip.


def main(arguments=None):
  """Runs the command."""
  options = _parse(arguments)
  folder = options.folder.absolute()
  _require_programs(options.stages)
  (folder / 'raw-data').mkdir(parents=True, exist_ok=True)
  archives = list_archives(
    folder / 'raw-data',
    os.environ.get('COCO_URL', 'http://images.cocodataset.org'),
    os.environ.get('COCO_FILES', FILES),
  )
  with only_run(folder / 'raw-data'):
    # A zip that was removed after it was extracted is not missed.
    packed = [each for each in archives if _lost_names(each, folder) != []]
    _require_space(folder, options.stages, packed, archives)
    if 'download' in options.stages:
      curl.download(packed)
    if 'extract' in options.stages:
      for archive in packed:
        _extract(archive, folder)
    for split in ('train', 'val'):
      if split in options.stages:
        _convert(folder, split)
  print(f'{folder}: {", ".join(options.stages)} done.')


def list_archives(
  folder: pathlib.Path, url: str, table: str | os.PathLike
) -> list[curl.File]:
  """The zips of COCO 2017.

  Args:
    folder: folder of the zips.
    url: base of the paths in the table.
    table: text with lines `PATH BYTES CHECKSUM`, `-` where one is not known.

  Raises:
    UserError: a line is not of that form.
  """
  archives = []
  for line in pathlib.Path(table).read_text().splitlines():
    if not line.strip() or line.startswith('#'):
      continue
    match = re.fullmatch(
      r'(\S+)\s+(\d+|-)\s+((?:md5|sha256):[0-9a-f]+|-)', line
    )
    if not match:
      raise UserError(
        f'{table}: expected PATH BYTES CHECKSUM, got {line!r}.',
        path=table,
        given=line,
      )
    path, size, digest = match.groups()
    archives.append(
      curl.File(
        f'{url.rstrip("/")}/{path}',
        folder / pathlib.PurePosixPath(path).name,
        None if size == '-' else int(size),
        None if digest == '-' else digest,
      )
    )
  return archives


@contextlib.contextmanager
def only_run(folder: pathlib.Path):
  """Locks a folder against another run at the same time.

  Raises:
    UserError: another run holds the lock.
  """
  import fcntl

  with open(folder / '.lock', 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(
        f'Another run is at work in {folder}: wait for it or stop it.',
        path=folder,
      ) from None
    except OSError:
      pass  # A file system without locks.
    yield


def _parse(arguments):
  parser = argparse.ArgumentParser(
    'download_and_preprocess_coco.sh',
    description='Downloads COCO 2017 (27 GB) and makes records of it (22 GB).',
  )
  add = parser.add_argument
  add('folder', metavar='DIR', type=pathlib.Path, help='folder to fill')
  add(
    'stages',
    metavar='STAGE',
    nargs='*',
    default=[],
    help=f'{", ".join(STAGES)}; by default all',
  )
  options = parser.parse_args(arguments)
  unknown = [stage for stage in options.stages if stage not in STAGES]
  if unknown:
    parser.error(f'There is no stage {unknown[0]!r}: {", ".join(STAGES)}.')
  given = options.stages or STAGES
  options.stages = [stage for stage in STAGES if stage in given]
  return options


def _require_programs(stages):
  """Raises if a program or package that the stages need is missing."""
  missing = [name for name in _PROGRAMS if shutil.which(name) is None]
  if missing and {'download', 'extract'} & set(stages):
    names = ' '.join(missing)
    raise UserError(
      f'The stages download and extract need {names}: apt-get install {names}.',
      item=missing[0],
    )
  missing = [x for x in _PACKAGES if importlib.util.find_spec(x) is None]
  if missing and {'train', 'val'} & set(stages):
    raise UserError(
      f'This Python lacks {", ".join(missing)}, which the stages train and val '
      'need: run bash launch/environment.sh, or set PYTHON.',
      item=missing[0],
    )


def _require_space(folder, stages, packed, archives):
  """Raises if there is less free disk space than the stages need."""
  needs = dict.fromkeys(stages, 0)
  for archive in packed:
    size = archive.size or 0
    if 'download' in needs and not archive.path.exists():
      needs['download'] += max(size - curl.size_of(archive.part), 0)
    if 'extract' in needs:
      images = folder / 'raw-data' / archive.path.stem
      there = sum(x.stat().st_size for x in images.glob('*'))
      out = int(size * _GROWTH[_kind(archive)])
      needs['extract'] += max(out - there, 0)
  for archive in archives:
    split = archive.path.name.partition('2017')[0]
    if split in needs and not _record_files(folder, split):
      needs[split] += int((archive.size or 0) * _RECORDS_GROWTH)
  needed, free = sum(needs.values()), shutil.disk_usage(folder).free
  if needed > free:
    shares = [f'{name} {n / 1e9:.1f} GB' for name, n in needs.items() if n]
    raise UserError(
      f'{folder} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are '
      f'needed ({", ".join(shares)}).',
      path=folder,
      given=free,
      wanted=needed,
    )


def _kind(archive):
  """`zips` of images or `annotations`: the folder on the server."""
  return archive.url.rsplit('/', 2)[1]


def _root(archive, folder):
  """The folder that the names inside a zip are relative to."""
  return folder if _kind(archive) == 'annotations' else archive.path.parent


def _extraction_stamp(archive):
  return archive.path.with_name(f'.{archive.path.name}.extracted')


def _lost_names(archive, folder) -> list[str] | None:
  """Extracted files of a zip that are missing since; None: not extracted."""
  try:
    names = _extraction_stamp(archive).read_text().splitlines()
  except OSError:
    return None
  root = _root(archive, folder)
  return [name for name in names if not os.path.exists(f'{root}/{name}')]


def _extract(archive, folder):
  """Extracts one zip; downloads it again, once, if it proves corrupt.

  A file that is there already stays as it is.
  """
  if not archive.path.exists():
    raise UserError(
      f'{archive.path} does not exist: run the stage download first.',
      path=archive.path,
    )
  annotations = _kind(archive) == 'annotations'
  top = 'annotations' if annotations else archive.path.stem
  root = _root(archive, folder)
  lost = _lost_names(archive, folder) or []
  staging = archive.path.with_name(f'.{archive.path.name}.unfinished')
  shutil.rmtree(staging, ignore_errors=True)  # Of a run that was killed.
  try:
    curl.download([archive])  # Verifies it, if that was not done.
    print(f'Extracting {archive.path} to {root / top}.', flush=True)
    problem = _unzip(archive.path, staging, lost)
    if problem:
      aside = curl.set_aside(archive.path)
      print(f'{problem} It is {aside} now and is downloaded again.', flush=True)
      curl.download([archive])
      shutil.rmtree(staging, ignore_errors=True)
      problem = _unzip(archive.path, staging, lost)
    if problem:
      raise UserError(
        f'{problem} It was downloaded again before.', path=archive.path
      )
    names = _move_new(staging, root, top)
  finally:
    shutil.rmtree(staging, ignore_errors=True)
  if not lost:
    files.write_text(_extraction_stamp(archive), '\n'.join(names))


def _unzip(path, folder, names) -> str | None:
  """Extracts names, or everything, to a folder; returns the problem, if any.

  Raises:
    OSError: the disk is full.
  """
  few = names if len(names) <= _MOST_MEMBERS else []
  done = subprocess.run(
    ['unzip', '-qq', '-o', path, *few, '-d', folder],
    stdin=subprocess.DEVNULL,  # Or it asks what to do about a full disk.
    capture_output=True,
    text=True,
    errors='replace',
  )
  message = (done.stdout + done.stderr).strip()
  if done.returncode == _UNZIP_DISK_FULL:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
  if done.returncode:
    return f'{path} is a corrupt zip file: {message}.'
  return None


def _move_new(staging, root, top) -> list[str]:
  """Moves extracted files to where there is none; returns all their names."""
  paths = sorted(path for path in (staging / top).rglob('*') if path.is_file())
  for path in paths:
    target = root / path.relative_to(staging)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
      path.rename(target)
  return [path.relative_to(staging).as_posix() for path in paths]


def _record_files(folder, split):
  """The record files of a split, an empty list if there are none.

  Raises:
    UserError: some are missing.
  """
  pattern = f'{split}-?????-of-?????.tfrecord'
  found = sorted(glob.glob(pattern, root_dir=folder))
  counts = {int(name[-14:-9]) for name in found}
  if found and counts != {len(found)}:
    raise UserError(
      f'{folder} holds {len(found)} files like {found[0]}, which are not a '
      f'whole set: remove {folder}/{pattern} and run this again.',
      path=folder / found[0],
    )
  return found


def _convert(folder, split):
  """Writes the records of a split, unless they exist."""
  if _record_files(folder, split):
    return
  images = folder / 'raw-data' / f'{split}2017'
  instances, captions = (
    folder / 'annotations' / f'{name}_{split}2017.json'
    for name in ('instances', 'captions')
  )
  for path in (images, instances, captions):
    if not path.exists():
      raise UserError(
        f'{path} does not exist: run the stages download and extract first.',
        path=path,
      )
  # Keep TensorFlow from printing about CPU features and missing GPUs.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  from maskrcnn_jax.datasets import prepare

  print(f'Writing the records of {split}.', flush=True)
  summary = prepare.prepare(
    images,
    instances,
    folder / f'{split}-*.tfrecord',
    NUM_SHARDS[split],
    captions_file=captions,
    drop_outside=True,
    allow_empty_classes=True,
  )
  print(summary, flush=True)


def run():
  """Runs the command; errors become a message and an exit status."""
  try:
    main()
  except UserError as error:
    sys.exit(str(error))
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
      sys.exit(f'{error.filename or "A file"}: {error.strerror or error}.')
    sys.exit(
      f'The disk is full: {error.filename or "a file"} could not be written. '
      'Free some space and run this again: it continues from there.'
    )
  except KeyboardInterrupt:
    print('\nInterrupted; run it again to continue.', file=sys.stderr)
    sys.stderr.flush()
    os._exit(130)  # Threads that verify a file would hold up the usual way.


if __name__ == '__main__':
  run()
