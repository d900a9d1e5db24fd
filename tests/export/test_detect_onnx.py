"""`detect.py` of an ONNX export: the detections of `Predictor`, on its own."""

import json

import drawn_checkpoint
import export_process
import numpy as np
import pytest
import tiny_run
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_jax.evaluation import mask_pasting
from maskrcnn_jax.export import detect, exporter
from maskrcnn_jax.inference.predictor import Predictor

pytest.importorskip('onnx', reason="onnx is missing: pip install '.[test]'")
onnxruntime = pytest.importorskip(
  'onnxruntime', reason="it is missing: pip install '.[test]'"
)
BLOCKED = (
  *('maskrcnn_jax', 'jax', 'jaxlib', 'flax', 'tensorflow', 'pycocotools'),
  *('onnx', 'matplotlib', 'ml_dtypes'),
)


def draw_image(*size):
  return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


def test_masks_are_encoded_as_pycocotools_does():
  rng = np.random.default_rng(1)
  masks = [np.zeros((5, 7), bool), np.ones((5, 7), bool)]
  masks += [rng.random((40, 60)) < share for share in (0.01, 0.5, 0.99)]
  big = np.zeros((900, 1200), bool)
  big[100:850, 3:1100] = True
  for mask in (*masks, big):
    found = detect.encode(mask)
    wanted = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    assert found['counts'] == wanted['counts'].decode()
    assert found['size'] == wanted['size']
    np.testing.assert_array_equal(coco_mask.decode(found), mask)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  folder = tmp_path_factory.mktemp('onnx')
  config = tiny_run.make_config('', '')
  config.input.canvases = ((64, 96), (96, 64))
  config.input.image_dtype = 'uint8'
  config.model.detections.max_detections = 10
  drawn_checkpoint.write(folder / 'run', config)
  options = exporter.ExportOptions(formats=('onnx',))
  exporter.export(folder / 'run', folder / 'exported', options)
  return folder


@pytest.mark.slow
def test_detections_are_those_of_the_predictor(exported):
  finds = detect.Detector(exported / 'exported', threads=1)
  predictor = Predictor(exported / 'run')
  for size in ((50, 70), (130, 61)):
    image = draw_image(*size)
    found, wanted = finds(image), predictor(image)
    assert len(found['scores']) == 10
    np.testing.assert_array_equal(found['classes'], wanted.classes)
    np.testing.assert_allclose(found['scores'], wanted.scores, atol=1e-4)
    np.testing.assert_allclose(found['boxes'], wanted.boxes, atol=1e-2)
    masks = mask_pasting.paste_masks(wanted.masks, wanted.boxes, size)
    assert np.mean(found['masks'] != masks) < 1e-3


@pytest.mark.slow
def test_the_files_of_the_export(exported):
  folder = exported / 'exported'
  about = json.loads((folder / 'export.json').read_text())
  assert [x['onnx'] for x in about['canvases']] == [
    'detect_64x96.onnx',
    'detect_96x64.onnx',
  ]
  assert sorted(path.name for path in folder.iterdir()) == sorted(
    [*about['sha256'], 'detect.py', 'export.json']
  )
  for figures in about['checks']['onnx']:
    assert figures['images'] == 2 and figures['detections'] > 0
    assert figures['missing'] == figures['added'] == 0
    assert 0 < figures['boxes'] < about['checks']['tolerances']['boxes']
  path = folder / 'detect_96x64.onnx'
  session = onnxruntime.InferenceSession(path)
  metadata = session.get_modelmeta().custom_metadata_map
  metadata = {key: json.loads(value) for key, value in metadata.items()}
  assert metadata['class_names'] == about['class_names']
  assert metadata['canvas'] == [96, 64] and metadata['step'] == 4
  assert metadata['resize'] == about['resize']
  # A changed bit is found.
  data = bytearray((folder / 'detect_64x96.onnx').read_bytes())
  data[1000] ^= 1
  (exported / 'changed').mkdir()
  (exported / 'changed/detect_64x96.onnx').write_bytes(data)
  text = json.dumps(about)
  (exported / 'changed/export.json').write_text(text)
  with pytest.raises(ValueError, match='detect_64x96'):
    detect.Detector(exported / 'changed')(draw_image(30, 40))


@pytest.mark.slow
def test_a_folder_of_images_without_jax_and_this_package(exported):
  folder = exported / 'photos'
  folder.mkdir()
  sizes = [(80, 120), (50, 40)]
  for number, size in enumerate(sizes):
    Image.fromarray(draw_image(*size)).save(folder / f'{number}.png')
  (folder / 'notes.txt').write_text('no image')
  shown = export_process.run(
    "import detect; detect.main(['../photos', '--output=../found', "
    "'--min_score=0.3'])",
    BLOCKED,
    exported / 'exported',
  )
  lines = [json.loads(line) for line in shown.splitlines()]
  coco = json.loads((exported / 'found/detections.json').read_text())
  assert [x['file_name'] for x in coco['images']] == [x['file'] for x in lines]
  assert [(x['height'], x['width']) for x in coco['images']] == sizes
  assert coco['categories'][0] == {'id': 1, 'name': 'disc'}
  counts = [len(x['objects']) for x in lines]
  assert sum(counts) == len(coco['annotations']) > 0
  finds = detect.Detector(exported / 'exported')
  for index, size in enumerate(sizes):
    found = finds(draw_image(*size))
    rows = [x for x in coco['annotations'] if x['image_id'] == index + 1]
    assert len(rows) == np.sum(found['scores'] >= 0.3)
    for row, mask in zip(rows, found['masks']):
      assert row['score'] >= 0.3 and row['category_id'] in (1, 2)
      np.testing.assert_array_equal(coco_mask.decode(row['segmentation']), mask)
    with Image.open(exported / f'found/00000{index + 1}_{index}.png') as image:
      assert image.size == size[::-1]
  # Nothing is overwritten.
  with pytest.raises(FileExistsError):
    detect.main(['photo.jpg', f'--output={exported / "found"}'])


def test_a_missing_package_is_named(tmp_path, monkeypatch):
  workdir = drawn_checkpoint.write(
    tmp_path / 'run', tiny_run.make_config('', '')
  )
  monkeypatch.setattr(
    'importlib.util.find_spec', lambda name: None if 'runtime' in name else 1
  )
  options = exporter.ExportOptions(formats=('onnx',))
  with pytest.raises(exporter.UserError) as caught:
    exporter.export(workdir, tmp_path / 'exported', options)
  assert caught.value.argument == 'format'
  assert caught.value.wanted == 'onnxruntime'
  assert not (tmp_path / 'exported').exists()
