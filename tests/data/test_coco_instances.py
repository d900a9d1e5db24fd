"""COCO with masks as a TFDS data set, against what `prepare` writes."""

import io
import json
import shutil
import zipfile

import coco_archives
import coco_instances
import coco_instances_dataset_builder
import example_records
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from maskrcnn_jax.datasets import prepare
from maskrcnn_jax.input_pipeline import batches


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
  """A folder as the download script leaves it, with a few pictures."""
  folder = tmp_path_factory.mktemp('coco')
  for path, content in coco_archives.make().items():
    root = folder if path.startswith('annotations') else folder / 'raw-data'
    zipfile.ZipFile(io.BytesIO(content)).extractall(root)
  return folder


@pytest.fixture(scope='module')
def made(coco, tmp_path_factory):
  """The TFDS directory that the command makes."""
  output = tmp_path_factory.mktemp('made') / 'deep' / 'coco_instances'
  arguments = ['--coco', coco, '--output', output, '--workers', 1]
  assert coco_instances.main(list(map(str, arguments))) == 0
  assert [path.name for path in output.parent.iterdir()] == ['coco_instances']
  return output


@pytest.mark.parametrize('split', ['train', 'val'])
def test_equals_what_prepare_writes(coco, made, tmp_path, split):
  annotations = coco / 'annotations'
  prepare.prepare(
    coco / 'raw-data' / f'{split}2017',
    annotations / f'instances_{split}2017.json',
    tmp_path / split,
    num_workers=1,
    captions_file=annotations / f'captions_{split}2017.json',
  )
  expected, found = (
    example_records.features(pattern, decoded=False)
    for pattern in (f'{tmp_path}/{split}-*', f'{made}:{split}')
  )
  assert len(found) == coco_archives.NUM_IMAGES[split]
  assert found == expected


def test_reads_as_batches(coco, made):
  stream = batches.train_batches(
    f'{made}:train', canvases=[(96, 96)], batch_size=5, flip=False
  )
  batch = next(stream)
  assert sorted(batch['image_ids']) == [100, 101, 102, 103, 104]
  # Picture k has k objects, the second of which is a crowd and not trained on.
  counts = batch['instances']['valid'].sum(axis=1)
  expected = {100: 0, 101: 1, 102: 1, 103: 2, 104: 3}
  assert dict(zip(batch['image_ids'].tolist(), counts)) == expected
  assert (
    batch['instances']['masks'][batch['instances']['valid']].any((1, 2)).all()
  )


def test_reads_as_tfds(coco, made):
  dataset = tfds.builder_from_directory(made).as_dataset(split='train')
  content = json.loads(
    (coco / 'annotations' / 'instances_train2017.json').read_text()
  )
  sizes = {x['id']: (x['height'], x['width']) for x in content['images']}
  for example in dataset.as_numpy_iterator():
    image = example['image']
    image_id = int(image['source_id'])
    assert image['encoded'].shape == (*sizes[image_id], 3)
    masks = image['object']['mask']
    assert len(masks) == image_id - 100
    if len(masks):
      assert masks.shape[1:] == (*sizes[image_id], 1) and masks.max() == 1
    captions = image['caption'].tolist()
    assert captions[0] == b'rings on picture %d' % len(masks)


def test_a_second_run_leaves_it_and_others_are_refused(
  coco, made, tmp_path, capsys
):
  arguments = ['--coco', str(coco), '--output']
  before = {path: path.stat().st_mtime_ns for path in made.iterdir()}
  assert coco_instances.main([*arguments, str(made)]) == 0
  assert before == {path: path.stat().st_mtime_ns for path in made.iterdir()}
  assert str(made) in capsys.readouterr().out
  assert coco_instances.main([*arguments, str(tmp_path)]) == 1
  assert f'--output {tmp_path}' in capsys.readouterr().err


def test_a_missing_file_is_named(coco, tmp_path, capsys):
  arguments = ['--coco', str(tmp_path), '--output', str(tmp_path / 'out')]
  assert coco_instances.main(arguments) == 1
  assert 'instances_train2017.json' in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()


def test_takes_the_manual_folder_of_tfds(coco, tmp_path):
  builder = coco_instances_dataset_builder.Builder(
    num_workers=1, data_dir=tmp_path
  )
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=coco)
  )
  assert builder.info.full_name == 'coco_instances/2017/1.0.0'
  assert builder.info.splits['val'].num_examples == 3


def test_an_unreadable_image_is_named(coco, tmp_path, capsys):
  shutil.copytree(coco, tmp_path, dirs_exist_ok=True)
  bad = tmp_path / 'raw-data' / 'val2017' / '000000000201.jpg'
  Image.fromarray(np.zeros((8, 8), np.uint8)).save(bad)
  arguments = ['--coco', tmp_path, '--output', tmp_path / 'o', '--workers', 1]
  assert coco_instances.main(list(map(str, arguments))) == 1
  assert '000000000201.jpg, image 201' in capsys.readouterr().err
  assert not (tmp_path / 'o').exists()
