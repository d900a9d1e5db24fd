"""Downloads pretrained ResNet-50 backbones; see data/README.md.

The folder has the layout of the reference implementation:
  resnet/resnet-nhwc-2018-02-07/    trained on ImageNet
  resnet/extracted_from_maskrcnn/   backbone of the Mask R-CNN below
  resnet/resnet-nhwc-2018-10-14/    empty, as in the reference
  mask-rcnn/1555659850/             SavedModel of Mask R-CNN, trained on COCO
and with --nvidia
  rn50_tf_amp_ckpt_v20.06.0/        trained on ImageNet, by NVIDIA

Pooch downloads: it compares checksums and starts again after a failure, but it
cannot resume in the middle of a file. Every folder appears when it is complete
and all tensors of its backbone were read.
"""

import argparse
import base64
import contextlib
import os
import pathlib
import re
import sys
import zipfile
from collections.abc import Iterator

import pooch
import requests
from urllib3.util import Retry

from maskrcnn_jax import files
from maskrcnn_jax.weights.published import BUCKET, TABLE

NVIDIA = TABLE['nvidia/resnet50_imagenet'].url
_RESNET, _MASK_RCNN = (
  TABLE[name].url.removeprefix(f'{BUCKET}/')
  for name in ('google/resnet50_imagenet', 'google/maskrcnn_resnet50_coco')
)
_RESNET_PREFIX = 'model.ckpt-112603'
_DATA = 'data-00000-of-00001'
_NVIDIA_FOLDER = 'rn50_tf_amp_ckpt_v20.06.0'
_NVIDIA_PREFIX = 'nvidia_rn50_tf_amp'
_TRIES = 5
_TIMEOUT_SECONDS = 60
_TRANSIENT_STATUS = (408, 425, 429, 500, 502, 503, 504)


def main(arguments=None) -> int:
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(
    'download_pretrained_weights.sh',
    description='Downloads pretrained ResNet-50 backbones.',
  )
  parser.add_argument(
    'folder',
    metavar='DIR',
    nargs='?',
    default='weights',
    type=pathlib.Path,
    help='folder to fill; default: weights',
  )
  parser.add_argument(
    '--nvidia', action='store_true', help="also NVIDIA's checkpoint"
  )
  options = parser.parse_args(arguments)
  folder = options.folder.absolute()
  try:
    _get_google(folder, os.environ.get('WEIGHTS_URL', BUCKET).rstrip('/'))
    if options.nvidia:
      _get_nvidia(folder, os.environ.get('NVIDIA_WEIGHTS_URL', NVIDIA))
  # Errors of requests are OSErrors.
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    print(f'{error}\nRun this again to try again.', file=sys.stderr)
    return 1
  print(f'{folder}: done.')
  return 0


def _get_google(folder, url):
  """Gets the checkpoint of ResNet, and Mask R-CNN with its backbone."""
  names = ['checkpoint']
  names += [f'{_RESNET_PREFIX}.{end}' for end in (_DATA, 'index', 'meta')]
  resnet = folder / 'resnet'
  with _missing(resnet / 'resnet-nhwc-2018-02-07', names) as unfinished:
    if unfinished:
      _download_all(f'{url}/{_RESNET}', unfinished, names)
      _check(unfinished / _RESNET_PREFIX, 'tpu_names')
  (resnet / 'resnet-nhwc-2018-10-14').mkdir(exist_ok=True)
  extracted = resnet / 'extracted_from_maskrcnn' / 'resnet50.ckpt'
  names = ['saved_model.pb']
  names += [f'variables/variables.{end}' for end in (_DATA, 'index')]
  with _missing(folder / _MASK_RCNN, names) as unfinished:
    if unfinished:
      _download_all(f'{url}/{_MASK_RCNN}', unfinished, names)
    if not extracted.with_name('resnet50.ckpt.index').exists():
      source = unfinished or folder / _MASK_RCNN
      variables = source / 'variables' / 'variables'
      count = _tensorflow_part().extract(variables, extracted)
      print(f'{extracted}: wrote the {count} tensors of the backbone.')


def _get_nvidia(folder, url):
  """Gets the checkpoint of NVIDIA's ResNet."""
  names = [f'{_NVIDIA_PREFIX}.{end}' for end in (_DATA, 'index')]
  with _missing(folder / _NVIDIA_FOLDER, names) as unfinished:
    if unfinished:
      archive = _download(url, unfinished, 'archive.zip', None)
      with zipfile.ZipFile(archive) as file:
        file.extractall(unfinished)
      archive.unlink()
      _check(unfinished / _NVIDIA_PREFIX, 'nvidia_names')


@contextlib.contextmanager
def _missing(
  folder: pathlib.Path, names: list[str]
) -> Iterator[pathlib.Path | None]:
  """A folder to fill that becomes `folder`; None if `folder` is complete."""
  if all((folder / name).is_file() for name in names):
    yield None
    return
  if folder.is_dir() and any(folder.iterdir()):
    raise ValueError(f'{folder} is incomplete: move it away.')
  with files.new_folder(folder) as unfinished:
    yield unfinished


def _download_all(url, folder, names):
  """Downloads files of Google's bucket, which states their checksums."""
  with requests.Session() as session:
    retries = Retry(
      _TRIES, backoff_factor=0.5, status_forcelist=_TRANSIENT_STATUS
    )
    session.mount('http', requests.adapters.HTTPAdapter(max_retries=retries))
    for name in names:
      answer = session.head(f'{url}/{name}', timeout=_TIMEOUT_SECONDS)
      answer.raise_for_status()
      _download(f'{url}/{name}', folder, name, _checksum(answer.headers))


def _checksum(headers) -> str | None:
  """`md5:HEX` of a file in Google's bucket; None if it is not stated."""
  # crc32c=..., md5=... in Base64, of the file as it is stored; a compressed
  # file arrives as other bytes.
  md5 = re.search(r'md5=([\w+/]+=*)', headers.get('x-goog-hash', ''))
  stored = headers.get('x-goog-stored-content-encoding', 'identity')
  if not md5 or stored != 'identity':
    return None
  return f'md5:{base64.b64decode(md5[1]).hex()}'


def _download(url, folder, name, checksum) -> pathlib.Path:
  """Downloads a file, several times if it fails or the checksum differs."""
  downloads = pooch.Pooch(
    path=folder,
    base_url='',
    registry={name: checksum},
    urls={name: url},
    retry_if_failed=_TRIES - 1,
  )
  print(url, flush=True)
  downloader = pooch.HTTPDownloader(progressbar=True, timeout=_TIMEOUT_SECONDS)
  return pathlib.Path(downloads.fetch(name, downloader=downloader))


def _check(prefix, names):
  """Reads all tensors of a backbone, whose checksums TensorFlow compares."""
  part = _tensorflow_part()
  tensors = part.read_tensors(prefix, getattr(part, names)())
  print(f'{prefix.name}: read the {len(tensors)} tensors of the backbone.')


def _tensorflow_part():
  """The module that imports TensorFlow, which takes seconds."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  import extract_backbone

  return extract_backbone


if __name__ == '__main__':
  try:
    sys.exit(main())
  except KeyboardInterrupt:
    sys.exit(130)
