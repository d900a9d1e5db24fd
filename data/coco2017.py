"""COCO 2017 from the network to record files; see data/README.md.

The folder it makes is laid out as by the reference implementations:
  raw-data/      the zips, and the images in train2017, val2017, test2017
  annotations/   eight json files
  train-00000-of-00256.tfrecord ..., val-00000-of-00032.tfrecord ...
"""

import argparse
import glob
import importlib.util
import os
import pathlib
import re

import download
import zips
from transfer import DownloadError, size_of

STAGES = ('download', 'extract', 'train', 'val')
NUM_SHARDS = {'train': 256, 'val': 32}  # As the reference converter writes.
FILES = pathlib.Path(__file__).with_name('coco2017_files.txt')
# What conversion imports; looked for before gigabytes are downloaded.
_PACKAGES = ('numpy', 'PIL', 'pycocotools', 'tensorflow', 'tqdm')
# Bytes that come out of a byte of zip, for the check of the disk: images are
# compressed already, annotations are text; records add masks to the images.
_GROWTH = {'zips': 1.01, 'annotations': 4.0}
_RECORDS_GROWTH = 1.1


def main(arguments=None):
  """Runs the command."""
  options = _parse(arguments)
  folder = options.folder.absolute()
  if {'train', 'val'} & set(options.stages):
    _require_packages()
  (folder / 'raw-data').mkdir(parents=True, exist_ok=True)
  archives = list_archives(
    folder / 'raw-data',
    os.environ.get('COCO_URL', 'http://images.cocodataset.org'),
    os.environ.get('COCO_FILES', FILES),
  )
  with download.only_run(folder / 'raw-data'):
    # A zip that was removed after it was extracted is not missed.
    packed = [each for each in archives if not is_extracted(each, folder)]
    needs = dict.fromkeys(options.stages, 0)
    _add_packed(needs, packed, folder)
    _add_records(needs, archives, folder)
    download.require_space(folder, needs)
    if 'download' in options.stages:
      download.download(packed)
    if 'extract' in options.stages:
      for archive in packed:
        _extract(archive, folder)
    for split in ('train', 'val'):
      if split in options.stages:
        _convert(folder, split)
  print(f'{folder}: {", ".join(options.stages)} done.')


def list_archives(
  folder: pathlib.Path, url: str, table: str | os.PathLike
) -> list[download.File]:
  """The zips of COCO 2017.

  Args:
    folder: where they go.
    url: what the paths of the table are relative to.
    table: text with lines `PATH BYTES CHECKSUM`, `-` where one is not known.

  Raises:
    DownloadError: if a line is not of that form.
  """
  archives = []
  for line in pathlib.Path(table).read_text().splitlines():
    if not line.strip() or line.startswith('#'):
      continue
    match = re.fullmatch(
      r'(\S+)\s+(\d+|-)\s+((?:md5|sha256):[0-9a-f]+|-)', line
    )
    if not match:
      raise DownloadError(
        f'{table}: expected PATH BYTES CHECKSUM, got {line!r}.'
      )
    path, size, digest = match.groups()
    archives.append(
      download.File(
        f'{url.rstrip("/")}/{path}',
        folder / pathlib.PurePosixPath(path).name,
        None if size == '-' else int(size),
        None if digest == '-' else digest,
      )
    )
  return archives


def is_extracted(archive: download.File, folder: pathlib.Path) -> bool:
  """Whether all files of a zip were extracted and none is missing since."""
  try:
    names = _extraction_stamp(archive).read_text().splitlines()
  except OSError:
    return False
  parents = {name.rpartition('/')[0] for name in names}
  root = _root(archive, folder)
  there = {
    f'{parent}/{name}'
    for parent in parents
    if (root / parent).is_dir()
    for name in os.listdir(root / parent)
  }
  return there.issuperset(names)


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


def _require_packages():
  missing = [x for x in _PACKAGES if importlib.util.find_spec(x) is None]
  if missing:
    raise DownloadError(
      f'This Python lacks {", ".join(missing)}, which the stages train and val '
      'need: run bash launch/environment.sh, or set PYTHON.'
    )


def _add_packed(needs, packed, folder):
  """Adds the bytes that download and extraction of the zips will take."""
  for archive in packed:
    size = archive.size or 0
    if 'download' in needs and not archive.path.exists():
      needs['download'] += max(size - size_of(archive.part), 0)
    if 'extract' in needs:
      images = folder / 'raw-data' / archive.path.stem
      there = sum(x.stat().st_size for x in images.glob('*'))
      out = int(size * _GROWTH[_kind(archive)])
      needs['extract'] += max(out - there, 0)


def _add_records(needs, archives, folder):
  """Adds the bytes that the records will take."""
  for archive in archives:
    split = archive.path.name.partition('2017')[0]
    if split in needs and not _record_files(folder, split):
      needs[split] += int((archive.size or 0) * _RECORDS_GROWTH)


def _kind(archive):
  """`zips` of images or `annotations`: the folder on the server."""
  return archive.url.rsplit('/', 2)[1]


def _root(archive, folder):
  """What the names inside a zip are relative to."""
  return folder if _kind(archive) == 'annotations' else archive.path.parent


def _extraction_stamp(archive):
  return archive.path.with_name(f'.{archive.path.name}.extracted')


def _extract(archive, folder):
  """Extracts one zip; downloads it again, once, if it proves damaged."""
  if not archive.path.exists():
    raise DownloadError(
      f'{archive.path} is not there: run the stage download first.'
    )
  annotations = _kind(archive) == 'annotations'
  top = 'annotations' if annotations else archive.path.stem
  root = _root(archive, folder)
  download.download([archive])  # Verifies it, if that was not done.
  print(f'Extracting {archive.path} to {root / top}.', flush=True)
  try:
    names = zips.extract(archive.path, root, top)
  except zips.DamagedZipError as error:
    aside = download.set_aside(archive.path)
    print(f'{error} It is {aside} now and is downloaded again.', flush=True)
    download.download([archive])
    try:
      names = zips.extract(archive.path, root, top)
    except zips.DamagedZipError as second:
      raise DownloadError(
        f'{second} It was downloaded again before.'
      ) from error
  except zips.ConflictError as error:
    raise DownloadError(str(error)) from error
  _extraction_stamp(archive).write_text('\n'.join(map(str, names)))


def _record_files(folder, split):
  """The record files of a split, an empty list if there are none.

  Raises:
    DownloadError: if some are missing.
  """
  pattern = f'{split}-?????-of-?????.tfrecord'
  files = sorted(glob.glob(pattern, root_dir=folder))
  counts = {int(name[-14:-9]) for name in files}
  if files and counts != {len(files)}:
    raise DownloadError(
      f'{folder} holds {len(files)} files like {files[0]}, which are not a '
      f'whole set: remove {folder}/{pattern} and run this again.'
    )
  return files


def _convert(folder, split):
  """Writes the records of a split, unless they are there."""
  files = _record_files(folder, split)
  if files:
    return
  images = folder / 'raw-data' / f'{split}2017'
  instances, captions = (
    folder / 'annotations' / f'{name}_{split}2017.json'
    for name in ('instances', 'captions')
  )
  for path in (images, instances, captions):
    if not path.exists():
      raise DownloadError(
        f'{path} is not there: run the stages download and extract first.'
      )
  # TensorFlow need not talk about CPU features and missing GPUs.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  from maskrcnn_jax.datasets import prepare

  print(f'Writing the records of {split}.', flush=True)
  try:
    summary = prepare.prepare(
      images,
      instances,
      folder / f'{split}-*.tfrecord',
      NUM_SHARDS[split],
      captions_file=captions,
    )
  except ValueError as error:
    raise DownloadError(str(error)) from error
  print(summary, flush=True)


if __name__ == '__main__':
  download.run(main)
