"""Readers of untrusted files: valid inputs to mutate, and how they are read.

A target has two functions of a folder: `make_NAME` writes a valid input,
`read_NAME` reads it through the functions that the verbs call. Of a case one
file is mutated, whose path is `read`'s second argument.
"""

import contextlib
import functools
import hashlib
import io
import json
import pathlib
import pickle
import shutil

import example_records
import label_sets
import numpy as np
import tensorflow_checkpoint
import tiny_checkpoint
from PIL import Image

from maskrcnn_jax import charts
from maskrcnn_jax.checkpoints import retention, store
from maskrcnn_jax.datasets import (
  categories,
  coco_json,
  images,
  prepare,
  records,
  stored_images,
)
from maskrcnn_jax.datasets.doctor import check, page, report
from maskrcnn_jax.datasets.formats import convert, source
from maskrcnn_jax.evaluation import coco_metrics
from maskrcnn_jax.export import detect
from maskrcnn_jax.inference import image_files
from maskrcnn_jax.inference.output_folder import OutputFolder
from maskrcnn_jax.input_pipeline import batches
from maskrcnn_jax.weights import external, state_dicts, tensor_files

_WEIGHTS = pathlib.Path(__file__).parents[1] / 'weights/files'
_SIZE = (24, 32)


def _arrays():
  """A narrow ResNet-18 with names of torchvision."""
  rng = np.random.default_rng(0)
  shapes = {'conv1': (4, 3, 7, 7), 'bn1': (4,)}
  for layer in range(1, 5):
    for block in range(2):
      for conv in (1, 2):
        name = f'layer{layer}.{block}'
        shapes[f'{name}.conv{conv}'] = (4, 4, 3, 3)
        shapes[f'{name}.bn{conv}'] = (4,)
  return {
    f'{name}.weight': rng.normal(size=shape).astype(np.float32)
    for name, shape in shapes.items()
  }


def make_weights(folder, suffix):
  """A file of tensors."""
  path = folder / f'x.{suffix}'
  if suffix == 'legacy':
    shutil.copy(_WEIGHTS / 'torch_legacy.pth', path)
  elif suffix == 'pkl':
    content = {
      'model': _arrays(),
      '__author__': 'x',
      'matching_heuristics': True,
    }
    path.write_bytes(pickle.dumps(content, protocol=2))
  else:
    tensor_files.write(path, _arrays())


def read_weights(folder, path):
  """All tensors, and the model that they belong to."""
  arrays = tensor_files.read(path).arrays
  for array in arrays.values():
    np.asarray(array).copy()
  if 'conv1.weight' in arrays:
    external.infer_model(path)


def make_tensorflow(folder, objects=False):
  """A TensorFlow checkpoint."""
  write = tensorflow_checkpoint.write_named
  if objects:
    write = tensorflow_checkpoint.write_objects
  write(folder / 'x.ckpt', tensorflow_checkpoint.google_backbone(50, 2))


def read_tensorflow(folder, path):
  """All tensors, and the model that they belong to."""
  file, form = external.read(folder / 'x.ckpt')
  state_dicts.infer_model(file, form)
  for array in [x for x in file.arrays.values() if x.dtype][:5]:
    np.asarray(array)


def make_records(folder):
  """Three records with 1, 2 and 0 objects, and class names beside them."""
  contents = []
  for number in range(3):
    image, boxes, masks = example_records.rectangles(
      *_SIZE, (number + 1) % 3, number
    )
    encoded = example_records.png(image)
    contents.append(
      example_records.record(encoded, number, _SIZE, boxes, masks)
    )
  records.write_records(folder / 'x.tfrecord', contents)


def read_records(folder, path):
  """The index, every object, and a batch of training."""
  index = records.index_records(str(path))
  categories.read_from_records(str(path))
  for row in range(min(len(index), 3)):
    records.read_record(index, row)
    records.read_objects(index, row)
  if path.stat().st_size % 4 == 0:
    made = batches.train_batches(
      str(path), ((32, 32),), 2, 3, 14, cache='nothing', num_threads=1
    )
    with contextlib.closing(made):
      next(made)


def make_tfds(folder):
  """A prepared folder of TFDS."""
  make_records(folder)
  (folder / 'x.tfrecord').rename(folder / 'x-train.tfrecord-00000-of-00001')
  split = {'name': 'train', 'shardLengths': ['3'], 'numBytes': '9'}
  split['filepathTemplate'] = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
  about = {'name': 'x', 'fileFormat': 'tfrecord', 'splits': [split]}
  (folder / 'dataset_info.json').write_text(json.dumps(about))


def read_tfds(folder, path):
  """The files of a split, and their index."""
  index = records.index_records(f'{folder}:train')
  categories.read_from_records(f'{folder}:train')
  records.read_objects(index, 0)


def make_coco(folder):
  """A small data set in COCO's format."""
  truth = {
    'images': [],
    'annotations': [],
    'categories': [{'id': 1, 'name': 'disc'}, {'id': 7, 'name': 'star'}],
  }
  (folder / 'images').mkdir()
  for number in range(2):
    image, boxes, _ = example_records.rectangles(*_SIZE, 2, number)
    name = f'{number}.jpg'
    Image.fromarray(image).save(folder / 'images' / name)
    truth['images'].append(
      {'id': number, 'file_name': name, 'height': 24, 'width': 32}
    )
    for kind, (y1, x1, y2, x2) in enumerate(boxes.tolist()):
      counts = [int(x1 * 24), 24, 768 - int(x1 * 24) - 24]
      runs = {'size': [24, 32], 'counts': counts}
      polygon = [[x1, y1, x2, y1, x2, y2, x1, y2]]
      text = {'size': [24, 32], 'counts': '`0h0'}
      truth['annotations'].append(
        {
          'id': len(truth['annotations']),
          'image_id': number,
          'category_id': (1, 7)[kind ^ number],  # Each has an object.
          'bbox': [x1, y1, x2 - x1, y2 - y1],
          'area': (x2 - x1) * (y2 - y1),
          'iscrowd': kind,
          'segmentation': (polygon, (runs, text)[number])[kind],
        }
      )
  (folder / 'x.json').write_text(json.dumps(truth))


def read_coco(folder, path):
  """What `check`, `prepare` and `eval` do with a data set."""
  annotations = folder / 'x.json'
  checked = check.check((folder / 'images', annotations), num_workers=1)
  report.to_text(checked)
  report.to_json(checked)
  if len(annotations.read_bytes()) % 4 == 0:
    page.make_page(checked, {'findings': list(page.draw_findings(checked))})
    with contextlib.redirect_stdout(io.StringIO()):
      coco_metrics.evaluate([], annotations, [0, 1])
  coco_json.load(annotations)
  output = folder / 'out' / 'y'
  prepare.prepare(folder / 'images', annotations, output, num_workers=1)


def make_images(folder):
  """An image in each format."""
  image = Image.fromarray(example_records.rectangles(*_SIZE, 0)[0])
  for suffix in images.ENDINGS:
    with contextlib.suppress(KeyError, ValueError, OSError):
      kind = image.convert('L') if suffix in ('.pgm', '.pbm') else image
      kind.save(folder / f'x{suffix}')
  exif = Image.Exif()
  exif[0x0112] = 6
  image.save(folder / 'y.jpg', exif=exif)
  image.convert('P').save(folder / 'y.png')
  for path in folder.iterdir():
    if path.suffix not in images.ENDINGS:
      path.unlink()


def read_images(folder, path):
  """What `prepare`, `check` and `predict` do with an image."""
  errors = []
  for read in (
    images.read_sizes,
    functools.partial(stored_images.read, height=24, width=32),
    image_files.read,
  ):
    try:
      read(path)
    except (ValueError, OSError) as error:
      errors.append(error)
  if errors:
    raise errors[-1]


def read_labels(folder, path, name):
  """The lists of COCO of a data set in a label format."""
  labels = label_sets.find_labels(folder)
  named = source.Source(folder / 'images', labels, None, 1)
  convert.find_format('auto', named)
  convert.read(name, named)


def make_workdir(folder):
  """A workdir with a checkpoint, a config and metrics."""
  tiny_checkpoint.save(folder, keep=3)
  config = tiny_checkpoint.make_config().to_dict()
  (folder / 'config.json').write_text(json.dumps(config))
  lines = [
    {'step': step, 'train/total_loss': 1.5, 'eval/AP': 0.1, 'train/box': 0.2}
    for step in (1, 2, 4)
  ]
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (folder / 'metrics.jsonl').write_text(text)


def read_workdir(folder, path):
  """What `eval`, `predict` and `train` read of a workdir."""
  store.claimed_config(folder)
  retention.best_step(folder, 'eval/AP')
  charts.learning_curve_panels(charts.read_metrics(folder))
  found = retention.find(folder)
  store.read_config(found)
  store.read_classes(found)
  store.read_category_ids(found)
  store.read_position(found)
  store.restore(folder)


def make_run(folder):
  """An output folder of `predict`."""
  output = OutputFolder(folder, ['detections.json', 'pictures/a.png'])
  output.claim({'a': 1})
  (folder / 'pictures').mkdir(exist_ok=True)
  (folder / 'pictures' / 'a.png').write_bytes(b'x')
  (folder / 'detections.json').write_text('[]')
  output.finish({'a': 1})


def read_run(folder, path):
  """What the next `predict` does with the folder."""
  output = OutputFolder(folder, ['detections.json', 'pictures/b.png'])
  output.claim({'a': 1})
  output.finish({'a': 1})


def make_export(folder):
  """An export without its programs, which are code."""
  np.savez(folder / 'weights.npz', **_arrays())
  weights = (folder / 'weights.npz').read_bytes()
  about = {
    'batch_size': None,
    'canvases': [{'canvas': [32, 32], 'fit': [32, 32], 'program': 'a.bin'}],
    'resize': {'exact_sizes': True},
    'inputs': {'images': {'dtype': 'uint8'}},
    'class_names': {'1': 'disc'},
    'sha256': {'weights.npz': hashlib.sha256(weights).hexdigest()},
  }
  (folder / 'export.json').write_text(json.dumps(about))


def read_export(folder, path):
  """What the example beside an export does, which is no part of the package."""
  try:
    detect.Detector(folder).fit(np.zeros((*_SIZE, 3), np.uint8))
  except Exception as error:
    raise ValueError(f'{path}: {error}') from error


def _labels(name):
  return (
    functools.partial(label_sets.make, name),
    functools.partial(read_labels, name=name),
  )


def _weights(suffix):
  return functools.partial(make_weights, suffix=suffix), read_weights


# Functions that make and that read a valid input, by name.
TARGETS = {
  **{x: _weights(x) for x in ('pth', 'legacy', 'pkl', 'npz', 'safetensors')},
  'tensorflow': (make_tensorflow, read_tensorflow),
  'keras': (
    functools.partial(make_tensorflow, objects=True),
    read_tensorflow,
  ),
  'records': (make_records, read_records),
  'tfds': (make_tfds, read_tfds),
  'coco': (make_coco, read_coco),
  'images': (make_images, read_images),
  **{name: _labels(name) for name in label_sets.MAKERS if name != 'coco'},
  'workdir': (make_workdir, read_workdir),
  'run': (make_run, read_run),
  'export': (make_export, read_export),
}
