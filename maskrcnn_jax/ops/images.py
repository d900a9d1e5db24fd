"""Images as the backbone wants them."""

import jax
import jax.numpy as jnp


def normalize(
  images: jax.Array,
  image_sizes: jax.Array,
  mean: tuple[float, float, float],
  std: tuple[float, float, float],
  bgr: bool = False,
) -> jax.Array:
  """Images as the backbone wants them: standardised, 0 outside the image.

  Args:
    images: `[batch, height, width, 3]`, RGB in 0..255.
    image_sizes: `[batch, 2]`.
    mean: of RGB in 0..1.
    std: of RGB in 0..1.
    bgr: the result's channels are blue, green, red.

  Returns:
    float32 of the same shape.
  """
  x = images.astype(jnp.float32) / 255.0
  x = (x - jnp.asarray(mean)) / jnp.asarray(std)
  if bgr:
    x = x[..., ::-1]
  rows = jnp.arange(images.shape[1]) < image_sizes[:, :1]
  columns = jnp.arange(images.shape[2]) < image_sizes[:, 1:]
  inside = rows[:, :, None] & columns[:, None, :]
  return jnp.where(inside[..., None], x, 0.0)
