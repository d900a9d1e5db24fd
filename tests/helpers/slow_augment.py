"""Oracle of augmentation: images, masks and boxes from the definition.

Whole images and masks, one step after the other, in float64. The steps are
those of `augment.Draw`, in its order.
"""

import colorsys

import numpy as np
import plain_rows

from maskrcnn_jax.input_pipeline.augment import PERMUTATIONS

GREY = 128


def upright(array, draw):
  """A turned and mirrored image or mask."""
  array = np.rot90(array, draw.turns)
  array = array[::-1] if draw.vertical else array
  return array[:, ::-1] if draw.horizontal else array


def sizes(draw, image_size, fit):
  """Corner and size of the crop, scaled size, offset and shown size.

  Loops over the axes, in Python's numbers.
  """
  sides = list(map(int, image_size))
  sides = sides[::-1] if draw.turns % 2 else sides
  kept, corner, shares = [], [], draw.crop_shares
  if draw.pixel_crop:
    shares = pixel_shares(draw.pixel_crop, sides, max(fit))
  for side, share, position in zip(sides, shares, draw.crop_position):
    kept.append(min(max(int(side * share + 0.5), 1), side))
    corner.append(int((side - kept[-1] + 1) * position))
  if draw.short_edge is None:
    scale = min(draw.scale * f / k for f, k in zip(fit, kept))
    scaled = [max(round(k * scale), 1) for k in kept]
  else:
    scale = draw.short_edge / min(kept)
    if scale * max(kept) > max(fit):
      scale = max(fit) / max(kept)
    scale = min([scale] + [f / k for f, k in zip(fit, kept)])
    scaled = [max(int(k * scale + 0.5), 1) for k in kept]
  rest = [max(s - f, 0) for s, f in zip(scaled, fit)]
  offset = [round(r * o) for r, o in zip(rest, draw.offset)]
  shown = [min(s, f) for s, f in zip(scaled, fit)]
  return corner, kept, scaled, offset, shown


def pixel_shares(crop, sides, longest):
  """Shares of the image that a crop in pixels of a resized image keeps."""
  scale = crop.short_edge / min(sides)
  if scale * max(sides) > longest:
    scale = longest / max(sides)
  shares = []
  for side, share in zip(sides, crop.shares):
    resized = int(side * scale + 0.5)
    choices = range(
      min(resized, crop.sides[0]), min(resized, crop.sides[1]) + 1
    )
    shares.append(choices[int(share * len(choices))] / resized)
  return shares


def warp_image(image, draw, fit):
  """`[h, w, 3]` float64 of what is shown."""
  corner, kept, scaled, offset, shown = sizes(draw, image.shape[:2], fit)
  image = upright(image, draw).astype(np.float64)
  image = image[corner[0] : corner[0] + kept[0]]
  image = image[:, corner[1] : corner[1] + kept[1]]
  reduced = any(k > s for k, s in zip(kept, scaled))
  if not reduced:
    image = distort(image, draw.colors)
  ys, xs = (
    triangle(kept[a], scaled[a])[offset[a] : offset[a] + shown[a]]
    for a in (0, 1)
  )
  image = np.einsum('ih,jw,hwc->ijc', ys, xs, image, optimize=True)
  if reduced:
    image = distort(image, draw.colors)
  return rotate_image(image, draw.angle) if draw.angle else image


def triangle(length, scaled):
  """`[scaled, length]` weights of a triangle filter."""
  step = length / scaled
  centers = (np.arange(scaled) + 0.5) * step
  distances = np.abs(np.arange(length) + 0.5 - centers[:, None])
  weights = np.maximum(1 - distances / max(step, 1.0), 0)
  return weights / weights.sum(axis=1, keepdims=True)


def before_rotation(angle, height, width):
  """Where the centre of every pixel was before a turn against the clock."""
  radians = np.deg2rad(angle)
  ys, xs = np.mgrid[:height, :width] + 0.5
  # With y upwards, as in geometry.
  points = (xs - width / 2) - 1j * (ys - height / 2)
  points = points * np.exp(-1j * radians)
  return height / 2 - points.imag, width / 2 + points.real


def rotate_image(image, angle):
  height, width = image.shape[:2]
  mean = image.mean(axis=(0, 1))
  ys, xs = before_rotation(angle, height, width)
  ys, xs = ys - 0.5, xs - 0.5
  padded = np.full((height + 2, width + 2, 3), mean)
  padded[1:-1, 1:-1] = image
  result = np.zeros_like(image)
  for dy in (0, 1):
    for dx in (0, 1):
      y, x = np.floor(ys) + dy, np.floor(xs) + dx
      weight = (1 - np.abs(ys - y)) * (1 - np.abs(xs - x))
      y = np.clip(y, -1, height).astype(int) + 1
      x = np.clip(x, -1, width).astype(int) + 1
      result += padded[y, x] * weight[..., None]
  return result


def distort(image, colors):
  """One step after the other, pixel by pixel where there is a hue."""
  image = np.clip(image + colors.brightness, 0, 255)
  if colors.contrast_first:
    image = np.clip(image * colors.contrast, 0, 255)
  if colors.saturation != 1 or colors.hue:
    flat = image.reshape(-1, 3) / 255
    for pixel in flat:
      hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
      saturation = min(saturation * colors.saturation, 1)
      pixel[:] = colorsys.hsv_to_rgb((hue + colors.hue) % 1, saturation, value)
    image = flat.reshape(image.shape) * 255
  if not colors.contrast_first:
    image = np.clip(image * colors.contrast, 0, 255)
  return image[..., PERMUTATIONS[colors.permutation]]


def warp_mask(mask, draw, fit):
  """`[h, w]` bool of what is shown, by the nearest pixels."""
  corner, kept, scaled, offset, shown = sizes(draw, mask.shape, fit)
  mask = upright(mask, draw) > 0
  mask = mask[corner[0] : corner[0] + kept[0]]
  mask = mask[:, corner[1] : corner[1] + kept[1]]
  for axis in (0, 1):
    ends = np.arange(offset[axis], offset[axis] + shown[axis]) + 0.5
    nearest = (ends * (kept[axis] / scaled[axis])).astype(int)
    mask = np.take(mask, np.minimum(nearest, kept[axis] - 1), axis=axis)
  if draw.angle:
    ys, xs = before_rotation(draw.angle, *shown)
    ys, xs = np.floor(ys).astype(int), np.floor(xs).astype(int)
    inside = (ys >= 0) & (ys < shown[0]) & (xs >= 0) & (xs < shown[1])
    ys, xs = np.clip(ys, 0, shown[0] - 1), np.clip(xs, 0, shown[1] - 1)
    mask = mask[ys, xs] & inside
  return mask


def tight_box(mask):
  """The box (y1, x1, y2, x2) of the pixels of a mask."""
  ys, xs = np.nonzero(mask)
  return [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1]


def warp_box(box, draw, image_size, fit):
  """The annotated box where it comes to lie, not cut; None if it is rotated.

  Args:
    box: `[4]` in pixels of the stored image.
    draw: parameters.
    image_size: (height, width) of the stored image.
    fit: (height, width) that an image may fill.
  """
  if draw.angle:
    return None
  (height, width), (y1, x1, y2, x2) = image_size, box
  for _ in range(draw.turns):
    # What was at the right comes to lie above.
    y1, x1, y2, x2 = width - x2, y1, width - x1, y2
    height, width = width, height
  if draw.vertical:
    y1, y2 = height - y2, height - y1
  if draw.horizontal:
    x1, x2 = width - x2, width - x1
  corner, kept, scaled, offset, _ = sizes(draw, image_size, fit)
  return [
    (value - corner[a]) * scaled[a] / kept[a] - offset[a]
    for value, a in zip((y1, x1, y2, x2), (0, 1, 0, 1))
  ]


def warp_objects(
  boxes, masks, draw, image_size, fit, canvas, mask_size, hidden
):
  """Objects that are shown.

  Args:
    boxes: `[n, 4]` in pixels of the stored image.
    masks: n masks `[h, w]`.
    draw: parameters.
    image_size: (height, width) of the stored image.
    fit: (height, width) that an image may fill.
    canvas: (height, width).
    mask_size: side of the crops.
    hidden: `[height, width]` bool of the canvas, or None.

  Returns:
    Numbers, boxes, full masks on the canvas, and crops, uint8.
  """
  found = []
  for number, (box, mask) in enumerate(zip(boxes, masks)):
    shown = warp_mask(mask, draw, fit)
    full = np.zeros(canvas, bool)
    full[: shown.shape[0], : shown.shape[1]] = shown
    placed = warp_box(box, draw, image_size, fit)
    is_hidden = hidden is not None and np.any(full & hidden)
    if hidden is not None:
      full &= ~hidden
    if not full.any():
      continue
    is_cut = placed is None or any(
      x < -0.5 or x > side + 0.5 for x, side in zip(placed, shown.shape * 2)
    )
    if is_cut or is_hidden:
      placed = tight_box(full)
    found.append((number, np.clip(placed, 0, shown.shape * 2), full))
  if not found:
    return [], np.zeros([0, 4]), [], np.zeros([0, mask_size, mask_size])
  numbers, boxes, masks = zip(*found)
  maps = [np.arange(side) for side in canvas]
  crops = plain_rows.crop_masks(np.stack(masks), boxes, *maps, mask_size)
  crops = (crops * 255 + 0.5).numpy().astype(np.uint8)
  return list(numbers), np.array(boxes), masks, crops
