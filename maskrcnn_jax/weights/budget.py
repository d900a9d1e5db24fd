"""Budget of the time and memory that reading a weight file may take."""

from maskrcnn_jax.errors import UserError

# Bytes per byte of the file, and for any file: room for compressed files and
# for tensors that share memory.
_PER_BYTE, _FOR_ANY = 4, 64 * 2**20
# Cost of a step of a pickle or of an entry of a table, which makes an object.
STEP = 128


class Budget:
  """Budget in bytes; whatever reads a file pays before it allocates.

  So a small file is read fast, or refused.
  """

  def __init__(self, size: int):
    """Budget for a file of `size` bytes."""
    self._size = size
    self._left = _PER_BYTE * size + _FOR_ANY

  def pay(self, cost: int) -> None:
    """Subtracts a number of bytes; raises `UserError` if there are too few."""
    self._left -= cost
    if self._left < 0:
      raise UserError(
        f'its content needs far more memory or time than its {self._size} '
        'bytes suggest; it may be made to exhaust this machine'
      )
