"""A tiny data set and the config of a tiny run."""

import copy
import json
import pathlib

import jax
import ml_collections
import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn_jax.checkpoints import store

SIZES = ((48, 64), (64, 40), (32, 32))


def write_dataset(folder, num_images=3):
  """Writes images with 1, 2, 0 objects; returns record pattern, COCO json."""
  # With TensorFlow, which tests of predictions and exports do without.
  import example_records

  from maskrcnn_jax.datasets import records

  images, annotations, contents = [], [], []
  for index in range(num_images):
    size = SIZES[index % len(SIZES)]
    image_id, count = 7 + index, (index + 1) % 3
    image, boxes, masks = example_records.rectangles(*size, count, index)
    encoded = example_records.png(image)
    contents.append(
      example_records.record(encoded, image_id, size, boxes, masks)
    )
    images.append({'id': image_id, 'height': size[0], 'width': size[1]})
    for class_id, (box, mask) in enumerate(zip(boxes.tolist(), masks), 1):
      rle = coco_mask.encode(np.asfortranarray(mask))
      annotations.append(
        {
          'id': len(annotations) + 1,
          'image_id': image_id,
          'category_id': class_id,
          'bbox': [box[1], box[0], box[3] - box[1], box[2] - box[0]],
          'area': float(mask.sum()),
          'iscrowd': 0,
          'segmentation': {**rle, 'counts': rle['counts'].decode()},
        }
      )
  names = ('disc', 'star')
  truth = {
    'images': images,
    'annotations': annotations,
    'categories': [{'id': i, 'name': n} for i, n in enumerate(names, 1)],
  }
  (folder / 'truth.json').write_text(json.dumps(truth))
  records.write_records(folder / 'train.tfrecord', contents)
  return str(folder / '*.tfrecord'), str(folder / 'truth.json')


def make_config(pattern, annotations_file):
  """The config of a tiny model and run."""
  devices = jax.device_count()
  proposals = {'pre_nms_top_k': 16, 'post_nms_top_k': 8}
  return ml_collections.ConfigDict(
    {
      'model': {
        'num_classes': 3,
        'backbone': {
          'depth': 18,
          'width': 4,
          'norm': 'group',
          'frozen_stages': 0,
        },
        'pyramid_channels': 8,
        'box_channels': 8,
        'mask_channels': 8,
        'mask_convs': 1,
        'train_proposals': proposals,
        'test_proposals': proposals,
        'rpn_targets': {'num_samples': 16},
        'sampling': {'num_rois': 8, 'foreground_fraction': 0.5},
        'detections': {'max_detections': 4},
      },
      'input': {
        'file_pattern': pattern,
        'canvases': ((64, 64),),
        'batch_size': max(2, devices),
        'max_instances': 4,
        'mask_size': 28,
        'image_dtype': 'float32',  # Can hold a NaN.
      },
      'optimizer': {'learning_rate': 0.01, 'warmup_steps': 0},
      'training': {
        'num_steps': 4,
        'log_every_steps': 1,
        'checkpoint_every_steps': 2,
        'keep_checkpoints': 5,
        'pictures': 2,
      },
      'evaluation': {
        'file_pattern': pattern,
        'annotations_file': annotations_file,
        'batch_size': max(2, devices),
        'min_picture_score': 0.0,
      },
    }
  )


def changed(config, fields):
  """A copy of a config with other values by path, such as `training.seed`."""
  config = copy.deepcopy(config)
  with config.unlocked():
    config.update_from_flattened_dict(fields)
  return config


def lines(workdir, key):
  """Step -> last line of metrics.jsonl with that key, without the speed."""
  text = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
  found = [json.loads(line) for line in text.splitlines()]
  for line in found:
    line.pop('train/images_per_second', None)
  return {line['step']: line for line in found if key in line}


def saved_steps(workdir):
  folder = pathlib.Path(workdir) / 'checkpoints'
  return sorted(int(path.name) for path in folder.iterdir())


def assert_same_end(*workdirs):
  """The newest checkpoints are the same, bit by bit."""
  states = [store.restore(workdir)[0] for workdir in workdirs]
  jax.tree.map(np.testing.assert_array_equal, *states)


def write_config(config, path):
  """A config as a file for the command."""
  path.write_text(
    'import ml_collections\n\n\ndef get_config():\n'
    f'  return ml_collections.ConfigDict({config.to_dict()!r})\n'
  )
  return path
