"""Mask targets and pasted masks of the trusted implementations."""

import golden_files
import jax
import numpy as np
import pytest

from maskrcnn_jax.ops import masks as op

TARGET_FILES = golden_files.files('07_mask_targets*.npz')
PASTE_FILES = golden_files.files('14_paste*.npz')
TORCHVISION_FILES = golden_files.files('ops_paste_masks*.npz', 'torchvision')
CROP = jax.jit(op.crop_masks, static_argnames='size')


def foreground_crops(golden, image):
  """Crops of an image's foreground RoIs; the others are ill-defined there.

  The recorded masks carry a border of 2 zeros that ours do not have.
  """
  valid = golden['valid_fg'][image].astype(bool)
  masks = golden[f'mask_gt_labels_b{image}'][:, 2:-2, 2:-2]
  indices = golden['fg_label_map'][image][valid]
  instance_boxes = np.zeros((len(masks), 4), np.float32)
  instance_boxes[indices] = golden['fg_box_targets'][image][valid]
  rois = golden['fg_boxes'][image][valid]
  size = golden['mask_targets'].shape[-1]
  return CROP(masks, instance_boxes, rois, indices, size=size), valid


@pytest.mark.parametrize('path', TARGET_FILES, ids=lambda path: path.stem)
def test_crops_before_the_threshold(path):
  golden = golden_files.load(path)
  for image in range(len(golden['fg_boxes'])):
    crops, valid = foreground_crops(golden, image)
    recorded = golden['raw_before_threshold'][image][valid]
    assert golden_files.relative_error(crops, recorded) <= 1e-4


@pytest.mark.parametrize('path', TARGET_FILES, ids=lambda path: path.stem)
def test_mask_targets(path):
  golden = golden_files.load(path)
  for image in range(len(golden['fg_boxes'])):
    crops, valid = foreground_crops(golden, image)
    recorded = golden['mask_targets'][image][valid]
    differs = (np.asarray(crops) >= 0.5) != recorded
    # A bit may differ only where rounding can carry the sample across 0.5; in
    # the recordings none does.
    raw = golden['raw_before_threshold'][image][valid]
    assert np.all(np.abs(raw[differs] - 0.5) <= 1e-4)
    assert np.mean(differs) <= 1e-4


@pytest.mark.parametrize('path', PASTE_FILES, ids=lambda path: path.stem)
def test_paste(path):
  golden = golden_files.load(path)
  for image, boxes in enumerate(golden['boxes_xywh']):
    x, y, width, height = boxes.T
    recorded = golden[f'segms_b{image}']
    pasted = op.paste_masks(
      golden['detection_masks'][image],
      np.stack([y, x, y + height, x + width], axis=-1),
      recorded.shape[1:],
    )
    np.testing.assert_array_equal(pasted, recorded.astype(bool))
    areas = np.sum(pasted, axis=(1, 2))
    np.testing.assert_array_equal(areas, golden[f'segm_area_b{image}'])


@pytest.mark.parametrize('path', TORCHVISION_FILES, ids=lambda path: path.stem)
def test_torchvision_paste(path):
  golden = golden_files.load(path)
  for group in sorted({name.split('/')[0] for name in golden}):
    pasted = op.paste_masks(
      golden[f'{group}/masks'],
      golden[f'{group}/boxes'][:, [1, 0, 3, 2]],
      tuple(int(side) for side in golden[f'{group}/image_hw']),
    )
    np.testing.assert_array_equal(pasted, golden[f'{group}/out'] > 0.5)
    areas = np.sum(pasted, axis=(1, 2))
    np.testing.assert_array_equal(areas, golden[f'{group}/area_gt_half'])
