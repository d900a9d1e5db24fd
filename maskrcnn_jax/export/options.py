"""What an export can do, and what it cannot."""

import dataclasses
from collections.abc import Sequence

from maskrcnn_jax.errors import UserError

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
FORMATS = ('stablehlo', 'saved_model')


@dataclasses.dataclass(frozen=True)
class ExportOptions:
  """What an export can do.

  Attributes:
    canvases: (height, width) of the inputs, a program each; None: those of the
      run.
    batch_size: images of a call; None: any number.
    platforms: of `PLATFORMS`; every program runs on each of them.
    image_dtype: 'uint8' or 'float32'; None: that of the run.
    formats: of `FORMATS`.
  """

  canvases: tuple[tuple[int, int], ...] | None = None
  batch_size: int | None = None
  platforms: tuple[str, ...] = ('cpu', 'cuda', 'tpu')
  image_dtype: str | None = None
  formats: tuple[str, ...] = ('stablehlo',)

  def __post_init__(self):
    _check_names('platforms', self.platforms, PLATFORMS)
    _check_names('format', self.formats, FORMATS)
    if self.batch_size is not None and self.batch_size < 1:
      raise UserError(f'--batch_size must be 1 or more, got {self.batch_size}.')
    for canvas in self.canvases or ():
      if min(canvas) < 32 or canvas[0] % 32 or canvas[1] % 32:
        raise UserError(
          f'--canvas must be multiples of 32 pixels, got {size_name(canvas)}.'
        )
    if self.canvases and len({*self.canvases}) < len(self.canvases):
      raise UserError(
        '--canvas names a size twice, got '
        f'{",".join(map(size_name, self.canvases))}.'
      )


def size_name(size: tuple[int, int]) -> str:
  """A size as in `832x1344`."""
  return 'x'.join(map(str, size))


def _check_names(flag: str, names: Sequence[str], known: Sequence[str]) -> None:
  unknown = [name for name in names if name not in known]
  if unknown or not names or len({*names}) < len(names):
    raise UserError(
      f'--{flag} must be some of {", ".join(known)}, each once, got '
      f'{",".join(names)}.'
    )
