"""Mask targets and pasted masks of the trusted implementations."""

import golden_files
import jax
import numpy as np
from golden_files import assert_near, swap_axes

from maskrcnn_jax.ops import masks as op

CROP = jax.jit(op.crop_masks, static_argnames='size')


@golden_files.each('07_mask_targets*.npz')
def test_mask_targets(recorded):
  """Foreground RoIs only; the others are ill-defined there."""
  size = recorded['mask_targets'].shape[-1]
  for image, valid in enumerate(recorded['valid_fg'].astype(bool)):
    # The recorded masks carry a border of 2 zeros that ours do not have.
    masks = recorded[f'mask_gt_labels_b{image}'][:, 2:-2, 2:-2]
    indices = recorded['fg_label_map'][image][valid]
    instance_boxes = np.zeros((len(masks), 4), np.float32)
    instance_boxes[indices] = recorded['fg_box_targets'][image][valid]
    rois = recorded['fg_boxes'][image][valid]
    crops = CROP(masks, instance_boxes, rois, indices, size=size)
    raw = recorded['raw_before_threshold'][image][valid]
    assert_near(crops, raw, 1e-4)
    differs = np.asarray(crops) >= 0.5
    differs = differs != recorded['mask_targets'][image][valid]
    # A bit may differ only where rounding can carry the sample across 0.5; in
    # the recordings none does.
    assert np.all(np.abs(raw[differs] - 0.5) <= 1e-4)
    assert np.mean(differs) <= 1e-4


@golden_files.each('14_paste*.npz')
def test_paste(recorded):
  for image, boxes in enumerate(recorded['boxes_xywh']):
    x, y, width, height = boxes.T
    expected = recorded[f'segms_b{image}']
    pasted = op.paste_masks(
      recorded['detection_masks'][image],
      np.stack([y, x, y + height, x + width], axis=-1),
      expected.shape[1:],
    )
    np.testing.assert_array_equal(pasted, expected.astype(bool))
    areas = np.sum(pasted, axis=(1, 2))
    np.testing.assert_array_equal(areas, recorded[f'segm_area_b{image}'])


@golden_files.each('ops_paste_masks*.npz', 'torchvision', '.*')
def test_torchvision_paste(recorded):
  pasted = op.paste_masks(
    recorded['masks'],
    swap_axes(recorded['boxes']),
    tuple(int(side) for side in recorded['image_hw']),
  )
  np.testing.assert_array_equal(pasted, recorded['out'] > 0.5)
  areas = np.sum(pasted, axis=(1, 2))
  np.testing.assert_array_equal(areas, recorded['area_gt_half'])
