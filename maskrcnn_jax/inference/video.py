"""Video files: their frames one by one, and a video of pictures.

Read and written by PyAV (FFmpeg), the extra `video`.
"""

import contextlib
import dataclasses
import fractions
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from maskrcnn_jax import files
from maskrcnn_jax.datasets import images
from maskrcnn_jax.errors import UserError

ENDINGS = (
  '.mp4', '.m4v', '.mov', '.mkv', '.webm', '.avi', '.mpg', '.mpeg', '.ts',
  '.m2ts', '.mts', '.wmv', '.flv', '.3gp', '.ogv',
)  # fmt: skip
# Of FFmpeg's formats those that hold a video; others, such as playlists, may
# name files and addresses to open.
_FORMATS = (
  'mov', 'mp4', 'matroska', 'webm', 'avi', 'mpeg', 'mpegts', 'asf', 'flv',
  'ogg',
)  # fmt: skip
# A file may be shorter than it says by this, and a hundredth: a last frame, or
# sound, need not have an exact end.
_SHORT_SECONDS = 0.5
_OPTIONS = {
  'protocol_whitelist': 'file',
  'format_whitelist': ','.join(_FORMATS),
}
_UNKNOWN_RATE = fractions.Fraction(30)


@dataclasses.dataclass(frozen=True)
class Frame:
  """A picture of a video.

  Attributes:
    number: in the file, from 0.
    seconds: of its time in the file.
    pixels: `[height, width, 3]` uint8 RGB, upright.
  """

  number: int
  seconds: float
  pixels: np.ndarray


def import_av() -> Any:
  """The package av; a `UserError` names the extra if it is not installed."""
  try:
    import av
  except ImportError as error:
    raise UserError(
      "videos need the package av: pip install 'maskrcnn-jax[video]'.",
      wanted='maskrcnn-jax[video]',
    ) from error
  return av


def survey(path: str | os.PathLike) -> tuple[int, fractions.Fraction]:
  """Number of frames of a whole video, and how many there are in a second.

  Reads the file, and decodes nothing of it.

  Raises:
    UserError: it is no video, has no frame, or is cut; says after how many
      frames.
  """
  count, last = 0, 0.0
  with _opened(path) as (container, stream), _naming(path, lambda: count):
    rate = stream.average_rate or stream.guessed_rate or _UNKNOWN_RATE
    start, stated = container.start_time or 0, container.duration or 0
    for packet in container.demux():
      if not packet.size:
        continue
      if packet.stream_index == stream.index:
        if packet.is_corrupt:
          message = f'{path} is cut or corrupt at frame {count}.'
          raise UserError(message, path=path, item=count)
        count += 1
      if packet.pts is not None:
        end = packet.pts + (packet.duration or 0)
        last = max(last, float(end * packet.time_base))
  if not count:
    raise UserError(f'{path} has no frame.', path=path, item=0)
  seconds, stated = last - start / 1e6, stated / 1e6
  if seconds < 0.99 * stated - _SHORT_SECONDS:
    raise UserError(
      f'{path} is cut: it should last {stated:.2f} s, and ends after '
      f'{seconds:.2f} s, frame {count}.',
      path=path,
      item=count,
      given=seconds,
      wanted=stated,
    )
  return count, rate


def read(path: str | os.PathLike, every: int = 1) -> Iterator[Frame]:
  """Yields every n-th frame of a video, from the first on.

  They are turned as the file says that players should, which phones rely on.

  Args:
    path: of the file.
    every: n.

  Raises:
    UserError: see `survey`; or a frame cannot be decoded, has more pixels than
      `images.max_pixels`, or another size than the first.
  """
  number, size = 0, None
  with _opened(path) as (container, stream), _naming(path, lambda: number):
    stream.thread_type = 'AUTO'
    rate = stream.average_rate or stream.guessed_rate or _UNKNOWN_RATE
    for decoded in container.decode(stream):
      if number % every == 0:
        # Decoded, but not converted to RGB yet, which takes twice the memory.
        _check_size(decoded, path, number)
        matrix = decoded.side_data.get('DISPLAYMATRIX')
        pixels = turned(
          decoded.to_ndarray(format='rgb24'),
          None if matrix is None else np.frombuffer(bytes(matrix), np.int32),
        )
        size = size or pixels.shape[:2]
        check_same_size(pixels, size, path, number)
        seconds = decoded.time
        if seconds is None:
          seconds = number / rate
        yield Frame(number, float(seconds), pixels)
      number += 1


def check_same_size(
  pixels: np.ndarray,
  size: tuple[int, int],
  path: str | os.PathLike,
  number: int,
) -> None:
  """Raises a `UserError` if a frame has another size than the first one.

  Args:
    pixels: of the frame.
    size: (height, width) of the first one.
    path: of the file.
    number: of the frame.
  """
  if pixels.shape[:2] != size:
    raise UserError(
      f'{path}: frame {number} is {pixels.shape[0]} x {pixels.shape[1]} '
      f'(height x width), and the first one {size[0]} x {size[1]}.',
      path=path,
      item=number,
      given=pixels.shape[:2],
      wanted=size,
    )


def _check_size(decoded, path, number):
  try:
    images.check_size(decoded.height, decoded.width, path)
  except UserError as error:
    raise UserError(
      f'{path}: frame {number} {error}',
      path=path,
      item=number,
      given=error.given,
      wanted=error.wanted,
    ) from None


def turned(pixels: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
  """Pixels as a display matrix says they should be shown.

  Args:
    pixels: `[height, width, 3]`.
    matrix: `[9]` int32 (a, b, u, c, d, v, x, y, w): a point (x, y) is shown at
      (a x + c y, b x + d y), see FFmpeg's `libavutil/display.h`. The nearest
      quarter turn, mirrored or not, is taken. None: as they are.
  """
  if matrix is None:
    return pixels
  a, b, _, c, d = matrix[:5].tolist()
  if abs(b) + abs(c) > abs(a) + abs(d):
    pixels, a, d = pixels.swapaxes(0, 1), c, b
  pixels = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
  return np.ascontiguousarray(pixels)


@contextlib.contextmanager
def _opened(path) -> Iterator[tuple]:
  """The opened file and its first video stream."""
  av = import_av()
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(2, 'No such file', str(path))
  with contextlib.ExitStack() as stack:
    with _naming(path, lambda: 0):
      # A name must not be taken for an address.
      container = stack.enter_context(
        av.open(f'file:{os.path.abspath(path)}', options=_OPTIONS)
      )
    if not container.streams.video:
      raise UserError(f'{path} has no video stream.', path=path)
    yield container, container.streams.video[0]


@contextlib.contextmanager
def _naming(path, number) -> Iterator[None]:
  """Errors of FFmpeg as errors of a file and a frame."""
  av = import_av()
  try:
    yield
  except av.FFmpegError as error:
    raise UserError(
      f'{path} cannot be read as a video: frame {number()}: {error.strerror}.',
      path=path,
      item=number(),
    ) from error


@contextlib.contextmanager
def written(
  path: str | os.PathLike, rate: fractions.Fraction
) -> Iterator['_VideoFile']:
  """An H.264 file in MP4 to add pictures to; it appears when it is whole.

  Args:
    path: to be made or replaced.
    rate: pictures per second, about: they are shown at the times they are given
      with.
  """
  av = import_av()
  with (
    files.replaced(path) as unfinished,
    av.open(str(unfinished), 'w', format='mp4') as container,
  ):
    file = _VideoFile(av, container, rate)
    yield file
    file.finish()


class _VideoFile:
  """Takes pictures of one size, in the order of their times."""

  # Of the times; as most containers have, and divisible by usual rates.
  _TICKS = 90_000

  def __init__(self, av, container, rate):
    self._av, self._container, self._rate = av, container, rate
    self._stream, self._last = None, -1

  def add(self, picture: np.ndarray, seconds: float) -> None:
    """Adds a picture `[height, width, 3]` uint8, shown from `seconds` on."""
    # Sides must be even.
    odd = [(0, side % 2) for side in picture.shape[:2]]
    picture = np.pad(picture, (*odd, (0, 0)), 'edge')
    if self._stream is None:
      self._start(*picture.shape[:2])
    frame = self._av.VideoFrame.from_ndarray(picture, format='rgb24')
    self._last = max(round(seconds * self._TICKS), self._last + 1)
    frame.pts, frame.time_base = self._last, fractions.Fraction(1, self._TICKS)
    self._container.mux(self._stream.encode(frame))

  def _start(self, height, width):
    stream = self._container.add_stream('libx264', rate=self._rate)
    stream.height, stream.width, stream.pix_fmt = height, width, 'yuv420p'
    stream.codec_context.time_base = fractions.Fraction(1, self._TICKS)
    self._stream = stream

  def finish(self) -> None:
    if self._stream is not None:
      self._container.mux(self._stream.encode())
