"""Mask targets and pasted masks of the trusted implementations."""

import golden_files
import jax
import numpy as np
import pytest
from golden_files import assert_near, swap_axes

from maskrcnn_jax.ops import masks as op
from maskrcnn_jax.ops import roi_align

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


def detectron2_masks(recorded):
  """Full-size masks `[n, height, width]`, one for each recorded RoI."""
  height, width = recorded['image_hw']
  bits = np.unpackbits(recorded['bitmask_bits'], axis=1)[:, : height * width]
  masks = bits.reshape(-1, height, width).astype(np.float32)
  return masks, recorded['instance_of_box']


@pytest.mark.parametrize('size', [28, 14])
@golden_files.each('ops_mask_targets*.npz', 'detectron2')
def test_mask_targets_of_detectron2_from_full_size_masks(recorded, size):
  """RoIAlign of the mask with adaptive sampling, thresholded at one half."""
  masks, owners = detectron2_masks(recorded)
  boxes = swap_axes(recorded['boxes'])
  longest = int(np.max(boxes[:, 2:] - boxes[:, :2])) + 1
  options = roi_align.RoiAlignOptions(
    adaptive_side=longest, half_pixel=True, zero_outside=True
  )

  @jax.jit
  @jax.vmap
  def align(mask, box):
    return roi_align.roi_align(mask[..., None], box[None], size, options)

  values = np.asarray(align(masks[owners], boxes))[:, 0, ..., 0]
  expected = recorded[f'targets_from_bitmask_{size}']
  differs = (values >= 0.5) != expected
  # Only where rounding can carry a value across one half.
  assert np.all(np.abs(values[differs] - 0.5) <= 1e-5)
  assert np.mean(differs) <= 1e-3


@golden_files.each('ops_mask_targets*.npz', 'detectron2')
def test_our_mask_targets_are_near_those_of_detectron2(recorded):
  """Ours come from masks that were cut to 112x112.

  Detectron2 rasterizes polygons in the RoI, or aligns full-size masks; the two
  differ in 2 % of the cells. Ours differ from the polygons' in 3 %.
  """
  example_records = pytest.importorskip('example_records')
  masks, owners = detectron2_masks(recorded)
  boxes = swap_axes(recorded['bitmask_boxes'])
  grid = (np.arange(side, dtype=np.int32) for side in masks.shape[1:])
  cut = np.asarray(
    example_records.crop_masks(masks.astype(np.uint8), boxes, *grid, 112)
  )
  scale = 255.0 if cut.dtype == np.uint8 else 1.0
  targets = CROP(
    cut.astype(np.float32) / scale, boxes, swap_axes(recorded['boxes']), owners
  )
  polygons = recorded['targets_from_polygon_28']
  aligned = recorded['targets_from_bitmask_28']
  share = np.mean((np.asarray(targets) >= 0.5) != polygons)
  assert np.mean(aligned != polygons) <= 0.03
  assert share <= 0.04
