"""Records against those the reference converter wrote and decoded."""

import io
import json

import example_records
import golden_files
import numpy as np
import pytest
from PIL import Image

from maskrcnn_jax.datasets import prepare, records
from maskrcnn_jax.input_pipeline import decode

RECORDINGS = golden_files.files('13_tfrecord_*_expected.npz')


@pytest.fixture(params=RECORDINGS, ids=lambda path: path.stem)
def recording(request):
  """The recorded values, and the path of the recorded file."""
  path = request.param
  name = path.name.replace('_expected.npz', '.tfrecord')
  return golden_files.load(path), path.with_name(name)


def test_there_are_recordings():
  assert RECORDINGS


def test_parses_the_records_of_the_reference(recording):
  expected, path = recording
  index = records.index_records(str(path))
  assert len(index) == expected['n_records']
  for row in range(len(index)):
    parsed = records.parse_record(records.read_record(index, row))
    want = {
      key.removeprefix(f'rec{row}_'): value
      for key, value in expected.items()
      if key.startswith(f'rec{row}_')
    }
    assert parsed['image_id'] == int(want['source_id']) == index.image_ids[row]
    height, width = want['hw']
    assert (parsed['height'], parsed['width']) == (height, width)
    assert (index.heights[row], index.widths[row]) == (height, width)
    for name in ('boxes', 'classes', 'is_crowd', 'area'):
      np.testing.assert_array_equal(parsed[name], want[name])
    image = decode.decode_image(parsed['encoded'])
    np.testing.assert_array_equal(image, want['image'])
    accurate = decode.decode_image(parsed['encoded'], accurate_jpeg=True)
    encoded = io.BytesIO(parsed['encoded'].numpy())
    pillow = np.asarray(Image.open(encoded).convert('RGB'))
    np.testing.assert_array_equal(accurate, pillow)
    # The largest difference that was recorded between the two decoders.
    difference = np.abs(pillow.astype(int) - np.asarray(image, int))
    assert difference.max() == want['jpeg_pil_maxdiff']
    masks = [
      np.asarray(Image.open(io.BytesIO(mask)))
      for mask in parsed['masks'].numpy()
    ]
    masks = np.array(masks, np.uint8).reshape(-1, height, width)
    np.testing.assert_array_equal(masks, want['masks'])


def test_prepares_the_records_of_the_reference(recording, tmp_path):
  expected, path = recording
  annotations = json.loads(str(expected['annotations_json']))
  for row, image in enumerate(annotations['images']):
    encoded = expected[f'coco_image_bytes_{row}'].tobytes()
    (tmp_path / image['file_name']).write_bytes(encoded)
  for name in ('annotations', 'captions'):
    text = str(expected[f'{name}_json'])
    (tmp_path / f'{name}.json').write_text(text)
  summary = prepare.prepare(
    tmp_path,
    tmp_path / 'annotations.json',
    tmp_path / 'out',
    num_shards=1,
    num_workers=1,
    captions_file=tmp_path / 'captions.json',
    drop_outside=True,
    allow_empty_classes=True,
  )
  ours, theirs = map(example_records.features, (summary.files[0], str(path)))
  assert list(ours) == list(theirs)
  for image_id, our in ours.items():
    assert our.keys() == theirs[image_id].keys()
    for name, values in our.items():
      assert values == theirs[image_id][name], (image_id, name)
