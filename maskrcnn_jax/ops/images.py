"""Normalisation of images."""

import jax
import jax.numpy as jnp


def normalize(
  images: jax.Array,
  image_sizes: jax.Array,
  mean: tuple[float, float, float],
  std: tuple[float, float, float],
  bgr: bool = False,
) -> jax.Array:
  """Images standardised for the backbone; 0 outside the image.

  Args:
    images: `[batch, height, width, 3]`, RGB in 0..255.
    image_sizes: `[batch, 2]`, height and width of the part that is image.
    mean: mean of RGB in 0..1.
    std: standard deviation of RGB in 0..1.
    bgr: whether the result's channels are blue, green, red.

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
