"""Pre-trained ResNet-50 backbones from the network; see data/README.md.

The folder it makes is laid out as by the reference implementation:
  resnet/resnet-nhwc-2018-02-07/    trained on ImageNet
  resnet/extracted_from_maskrcnn/   cut out of the Mask R-CNN below
  resnet/resnet-nhwc-2018-10-14/    empty, there too
  mask-rcnn/1555659850/             a SavedModel of Mask R-CNN, trained on COCO
and with --nvidia
  rn50_tf_amp_ckpt_v20.06.0/        trained on ImageNet, by NVIDIA
"""

import argparse
import contextlib
import os
import pathlib

import download
import zips
from transfer import DownloadError

BUCKET = 'https://storage.googleapis.com/cloud-tpu-checkpoints'
NVIDIA = (
  'https://api.ngc.nvidia.com/v2/models/nvidia/rn50_tf_amp_ckpt/versions/'
  '20.06.0/zip'
)
_RESNET = 'retinanet/resnet50-checkpoint-2018-02-07'
_RESNET_PREFIX = 'model.ckpt-112603'
_MASK_RCNN = 'mask-rcnn/1555659850'
_DATA = 'data-00000-of-00001'
_NVIDIA_FOLDER = 'rn50_tf_amp_ckpt_v20.06.0'
_NVIDIA_PREFIX = 'nvidia_rn50_tf_amp'


def main(arguments=None):
  """Runs the command."""
  parser = argparse.ArgumentParser(
    'download_pretrained_weights.sh',
    description='Downloads pre-trained ResNet-50 backbones.',
  )
  add = parser.add_argument
  add(
    'folder',
    metavar='DIR',
    nargs='?',
    default='weights',
    type=pathlib.Path,
    help='folder to fill; by default weights',
  )
  add('--nvidia', action='store_true', help="also NVIDIA's checkpoint")
  options = parser.parse_args(arguments)
  folder = options.folder.absolute()
  folder.mkdir(parents=True, exist_ok=True)
  with download.only_run(folder):
    _get_google(folder, os.environ.get('WEIGHTS_URL', BUCKET))
    if options.nvidia:
      _get_nvidia(folder, os.environ.get('NVIDIA_WEIGHTS_URL', NVIDIA))
  print(f'{folder}: done.')


def _get_google(folder, url):
  """The checkpoint of ResNet, and Mask R-CNN with the backbone cut out."""
  resnet = folder / 'resnet' / 'resnet-nhwc-2018-02-07'
  mask_rcnn = folder / _MASK_RCNN
  parts = [f'{_RESNET_PREFIX}.{kind}' for kind in (_DATA, 'index', 'meta')]
  variables = [f'variables/variables.{kind}' for kind in (_DATA, 'index')]
  places = [
    (_RESNET, resnet, ['checkpoint', *parts]),
    (_MASK_RCNN, mask_rcnn, ['saved_model.pb', *variables]),
  ]
  download.download(
    [
      download.File(f'{url.rstrip("/")}/{source}/{name}', target / name)
      for source, target, names in places
      for name in names
    ]
  )
  (folder / 'resnet' / 'resnet-nhwc-2018-10-14').mkdir(exist_ok=True)
  _check(resnet / _RESNET_PREFIX, 'tpu_names')
  extracted = folder / 'resnet' / 'extracted_from_maskrcnn' / 'resnet50.ckpt'
  if not extracted.with_name('resnet50.ckpt.index').exists():
    source = mask_rcnn / 'variables' / 'variables'
    with _refusals():
      count = _tensorflow_part().extract(source, extracted)
    print(f'{extracted}: wrote the {count} tensors of the backbone.')


def _get_nvidia(folder, url):
  """The checkpoint of NVIDIA's ResNet."""
  archive = folder / f'{_NVIDIA_FOLDER}.zip'
  prefix = folder / _NVIDIA_FOLDER / _NVIDIA_PREFIX
  if _is_checked(prefix):
    return
  download.download([download.File(url, archive)])
  with _refusals():
    zips.extract(archive, folder / _NVIDIA_FOLDER)
  _check(prefix, 'nvidia_names')


def _check(prefix, names):
  """Checks, once, that a checkpoint opens and has a backbone's tensors."""
  if _is_checked(prefix):
    return
  part = _tensorflow_part()
  with _refusals():
    tensors = part.read_tensors(prefix, getattr(part, names)())
  _stamp(prefix).write_text(_state(prefix))
  print(f'{prefix}: all {len(tensors)} tensors of the backbone can be read.')


def _is_checked(prefix):
  """Whether the files of a checkpoint are as they were when it was checked."""
  stamp = _stamp(prefix)
  return stamp.exists() and stamp.read_text() == _state(prefix)


def _stamp(prefix):
  return prefix.with_name(f'.{prefix.name}.checked')


def _state(prefix):
  """Names, sizes and times of the files of a checkpoint."""
  files = sorted(prefix.parent.glob(f'{prefix.name}.*'))
  stats = [(path.name, path.stat()) for path in files]
  return '\n'.join(f'{x} {s.st_size} {s.st_mtime_ns}' for x, s in stats)


def _tensorflow_part():
  """The code that needs TensorFlow, which takes seconds to import."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  import extract_backbone

  return extract_backbone


@contextlib.contextmanager
def _refusals():
  """Turns what cannot be used into an error for the user."""
  try:
    yield
  except ValueError as error:
    raise DownloadError(
      f'{error} Move it away and run this again to download it again.'
    ) from error
  except (zips.DamagedZipError, zips.ConflictError) as error:
    raise DownloadError(str(error)) from error


if __name__ == '__main__':
  download.run(main)
