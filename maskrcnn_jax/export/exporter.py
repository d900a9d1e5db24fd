"""Export of a trained model to files that run without this package."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
import tqdm

from maskrcnn_jax import __version__, files
from maskrcnn_jax.checkpoints import score_thresholds, store
from maskrcnn_jax.datasets import images
from maskrcnn_jax.errors import UserError, invalid
from maskrcnn_jax.export import description, program
from maskrcnn_jax.input_pipeline import transforms
from maskrcnn_jax.models.mask_rcnn import MaskRCNN

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
FORMATS = ('stablehlo', 'saved_model')
# Files beside the programs.
_DESCRIPTION, _WEIGHTS, _EXAMPLE = 'export.json', 'weights.npz', 'detect.py'


@dataclasses.dataclass(frozen=True)
class ExportOptions:
  """Options of the exported programs.

  Attributes:
    canvases: (height, width) of the inputs, a program each; None: those of the
      run.
    batch_size: images per call; None: any number.
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
    if self.image_dtype not in (None, *transforms.IMAGE_DTYPES):
      _check_names('image_dtype', (self.image_dtype,), transforms.IMAGE_DTYPES)
    if self.batch_size is not None and self.batch_size < 1:
      raise invalid('batch_size', self.batch_size, 'at least 1')
    canvases = self.canvases or ()
    if any(side < 32 or side % 32 for canvas in canvases for side in canvas):
      raise invalid('canvas', canvases, 'multiples of 32 pixels')
    # The run may be of somebody else, and anchors take memory.
    if any(math.prod(canvas) > images.MAX_PIXELS for canvas in canvases):
      raise invalid('canvas', canvases, f'at most {images.MAX_PIXELS} pixels')
    if len({*canvases}) < len(canvases):
      raise invalid('canvas', canvases, 'different sizes')


def export(
  source: str | os.PathLike,
  output: str | os.PathLike,
  options: ExportOptions | None = None,
) -> str:
  """Writes the programs of a model, its weights and their description.

  The folder appears when it is complete.

  Args:
    source: a workdir, or one checkpoint of it.
    output: folder to create; it may exist if it is empty.
    options: see there; None: its defaults.

  Returns:
    A summary to print: the files and their sizes.

  Raises:
    FileNotFoundError: there is no checkpoint.
    CorruptCheckpointError: its checksums do not match.
    UserError: the output is not empty, a size does not fit the run, or this
      JAX cannot write a SavedModel that this TensorFlow can read.
  """
  options = options or ExportOptions()
  output = pathlib.Path(output)
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise UserError(
      f'--output {output} is not empty. Name a new folder.',
      argument='output',
      path=output,
    )
  if 'saved_model' in options.formats:
    from maskrcnn_jax.export import saved_model

    saved_model.check()
  variables, config = store.restore(source)
  options, fits, exact_sizes = _complete(options, config.input)
  model = MaskRCNN.from_config(config.model)
  if model.detections.nms == 'mask':
    raise UserError(
      'model.detections.nms=mask ends outside of the model, which an exported '
      'program cannot do: train with class or all.',
      argument='model.detections.nms',
      given='mask',
      wanted=('class', 'all'),
    )
  weights = program.flatten_weights(variables)
  programs = _programs(model, weights, options)
  shapes = {}
  with files.new_folder(output.absolute()) as folder:
    for kind, exported in programs:
      shapes = _output_shapes(next(iter(exported.values())))
      if kind == 'saved_model':
        saved_model.write(folder / kind, exported, weights)
        continue
      for name, each in exported.items():
        (folder / f'{name}.jax_export').write_bytes(each.serialize())
      np.savez(folder / _WEIGHTS, **weights)
      shutil.copyfile(
        pathlib.Path(__file__).with_name(_EXAMPLE), folder / _EXAMPLE
      )
    versions = {'maskrcnn_jax': __version__, 'jax': jax.__version__}
    about = description.describe(
      options,
      [_entry(*x, options.formats) for x in zip(options.canvases, fits)],
      shapes,
      exact_sizes,
      store.read_classes(source),
      _min_scores(source),
      {'step': store.step_of(source), 'made_with': versions},
    )
    about['sha256'] = {
      path.name: hashlib.sha256(path.read_bytes()).hexdigest()
      for path in sorted(folder.iterdir())
      if path.is_file() and path.name != _EXAMPLE
    }
    (folder / _DESCRIPTION).write_text(
      json.dumps(about, indent=2, ensure_ascii=False) + '\n', encoding='utf-8'
    )
  return _summary(output)


def _complete(options: ExportOptions, inputs: Mapping):
  """Options completed by the run's, image sizes per canvas, exact_sizes."""
  resize = transforms.resize_options(inputs.get('resize'))
  options = dataclasses.replace(
    options,
    canvases=options.canvases or tuple(map(tuple, inputs.canvases)),
    image_dtype=options.image_dtype or inputs.get('image_dtype', 'uint8'),
  )
  fits = [transforms.fit_size(canvas, resize) for canvas in options.canvases]
  return options, fits, resize.exact_sizes


def _programs(model, weights, options) -> Iterator[tuple[str, dict]]:
  """(format, programs by name) of every format."""
  with tqdm.tqdm(
    total=len(options.formats) * len(options.canvases),
    unit='program',
    disable=not sys.stderr.isatty(),
  ) as bar:
    for kind in options.formats:
      made = {}
      for canvas in options.canvases:
        made[_name(canvas)] = program.export_detection(
          model,
          weights,
          canvas,
          options.batch_size,
          options.image_dtype,
          options.platforms,
          for_tensorflow=kind == 'saved_model',
        )
        bar.update()
      yield kind, made


def _entry(canvas, fit, formats):
  """The entry of a canvas in `export.json`."""
  entry = {'canvas': list(canvas), 'fit': list(fit)}
  if 'stablehlo' in formats:
    entry['program'] = f'{_name(canvas)}.jax_export'
  if 'saved_model' in formats:
    entry['signature'] = _name(canvas)
  return entry


def _output_shapes(exported):
  """(shape, dtype) of every output; a symbolic size is given by its name."""
  outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
  return {
    name: (
      [x if isinstance(x, int) else str(x) for x in output.shape],
      str(output.dtype),
    )
    for name, output in outputs.items()
  }


def _min_scores(source) -> Mapping[int | None, float]:
  """Recommended score thresholds; empty if the model was not evaluated."""
  with contextlib.suppress(UserError):
    return score_thresholds.read(source)
  return {}


def _summary(output: pathlib.Path) -> str:
  """The files of an export and their sizes."""
  lines = [f'{output} holds']
  for path in sorted(output.iterdir()):
    files = [path] if path.is_file() else path.rglob('*')
    size = sum(x.stat().st_size for x in files if x.is_file())
    lines.append(f'  {path.name:30} {size / 1e6:9.2f} MB')
  return '\n'.join(lines)


def _name(canvas):
  return 'detect_{}x{}'.format(*canvas)


def _check_names(flag: str, names: Sequence[str], known: Sequence[str]) -> None:
  if not names or {*names} - {*known} or len({*names}) < len(names):
    raise invalid(flag, names, f'some of {", ".join(known)}, each once')
