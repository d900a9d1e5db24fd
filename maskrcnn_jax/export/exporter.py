"""Export of a trained model to files that run without this package."""

import contextlib
import dataclasses
import functools
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
from maskrcnn_jax.errors import UserError, invalid, require
from maskrcnn_jax.export import check, description, program
from maskrcnn_jax.input_pipeline import resizing, single_images
from maskrcnn_jax.models.mask_rcnn import MaskRCNN

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
FORMATS = ('stablehlo', 'saved_model', 'onnx')
# Files beside the programs.
_DESCRIPTION, _WEIGHTS = 'export.json', 'weights.npz'
# Copied from this folder.
_EXAMPLE = 'detect.py'


@dataclasses.dataclass(frozen=True)
class ExportOptions:
  """Options of the exported programs.

  Attributes:
    canvases: (height, width) of the inputs, a program each; None: those of the
      run.
    batch_size: images per call; None: any number.
    platforms: of `PLATFORMS`; every program runs on each of them. Not for ONNX.
    image_dtype: 'uint8' or 'float32'; None: that of the run.
    formats: of `FORMATS`.
    images: files or folders of the images that the programs are checked on; ():
      drawn ones.
  """

  canvases: tuple[tuple[int, int], ...] | None = None
  batch_size: int | None = None
  platforms: tuple[str, ...] = ('cpu', 'cuda', 'tpu')
  image_dtype: str | None = None
  formats: tuple[str, ...] = ('stablehlo',)
  images: tuple[str, ...] = ()

  def __post_init__(self):
    _check_names('platforms', self.platforms, PLATFORMS)
    _check_names('format', self.formats, FORMATS)
    if self.image_dtype not in (None, *resizing.IMAGE_DTYPES):
      _check_names('image_dtype', (self.image_dtype,), resizing.IMAGE_DTYPES)
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

  The folder appears when it is complete, and its programs were run and gave
  the detections of the model, see `check`.

  Args:
    source: a workdir, or one checkpoint of it.
    output: folder to create; it may exist if it is empty.
    options: see there; None: its defaults.

  Returns:
    A summary to print: the files and their sizes.

  Raises:
    FileNotFoundError: there is no checkpoint.
    CorruptCheckpointError: its checksums do not match.
    UserError: the output is not empty, a size does not fit the run, this JAX
      cannot write a SavedModel that this TensorFlow can read, the model has no
      form in ONNX, or a program gives other detections.
  """
  options = options or ExportOptions()
  output = pathlib.Path(output)
  files.check_new_folder(output)
  _check_installed(options.formats)
  variables, config = store.restore(source)
  options, fits, resize = _complete(options, config)
  rows = _examples(options, fits, resize)
  model = _model(config.model)
  weights = program.flatten_weights(variables)
  versions = {'maskrcnn_jax': __version__, 'jax': jax.__version__}
  about = description.describe(
    options,
    [_entry(*x, options.formats) for x in zip(options.canvases, fits)],
    program.output_shapes(model, _shapes(options, weights)[0]),
    resize.exact_sizes,
    model.detections.mask_pasting,
    store.read_classes(source),
    _min_scores(source),
    {'step': store.step_of(source), 'made_with': versions},
  )
  about['checks'] = {'tolerances': check.TOLERANCES}
  detections = functools.cache(
    lambda model: check.detect(model, weights, rows, options.batch_size)
  )
  with files.new_folder(output.absolute()) as folder:
    for kind, made in _programs(model, weights, options, about):
      _write(folder, kind, made, weights)
      reference = program.in_float32(model) if kind == 'onnx' else model
      about['checks'][kind] = check.check(
        folder, kind, about, rows, functools.partial(detections, reference)
      )
    about['sha256'] = {
      path.name: hashlib.sha256(path.read_bytes()).hexdigest()
      for path in sorted(folder.iterdir())
      if path.is_file() and path.suffix != '.py'
    }
    (folder / _DESCRIPTION).write_text(
      json.dumps(about, indent=2, ensure_ascii=False) + '\n', encoding='utf-8'
    )
  return _summary(output)


def _check_installed(formats):
  """Raises `UserError` if a package of a format is missing."""
  if 'saved_model' in formats:
    purpose = '--format saved_model'
    require('train', 'tensorflow', purpose=purpose, argument='format')
    from maskrcnn_jax.export import saved_model

    saved_model.check()
  if 'onnx' in formats:
    names = 'onnx', 'onnxruntime'
    require('onnx', *names, purpose='--format onnx', argument='format')


def _complete(options: ExportOptions, config: Mapping):
  """Options completed by the run's, image sizes per canvas, ResizeOptions."""
  sizes = single_images.detection_sizes(config)
  resize = resizing.resize_options(sizes['resize'])
  options = dataclasses.replace(
    options,
    canvases=options.canvases or sizes['canvases'],
    image_dtype=options.image_dtype
    or config['input'].get('image_dtype', 'uint8'),
  )
  fits = [resizing.fit_size(canvas, resize) for canvas in options.canvases]
  return options, fits, resize


def _examples(options, fits, resize):
  """Images and image_sizes for every canvas to check its program on."""
  places = [(*x, options.image_dtype) for x in zip(options.canvases, fits)]
  if options.images:
    return [check.read(options.images, *x, resize) for x in places]
  return [check.draw(*x) for x in places]


def _shapes(options, weights):
  """Inputs of the program of every canvas."""
  more = options.batch_size, options.image_dtype
  return [program.input_shapes(weights, x, *more) for x in options.canvases]


def _programs(model, weights, options, about) -> Iterator[tuple[str, dict]]:
  """(format, programs by name) of every format."""
  with tqdm.tqdm(
    total=len(options.formats) * len(options.canvases),
    unit='program',
    disable=not sys.stderr.isatty(),
  ) as bar:
    for kind in options.formats:
      made = {}
      every = options.canvases, about['canvases'], _shapes(options, weights)
      for canvas, entry, shapes in zip(*every):
        if kind == 'onnx':
          from maskrcnn_jax.export import onnx_program

          metadata = description.metadata(about, entry)
          one = onnx_program.detection(model, weights, shapes, metadata)
        else:
          one = program.export_detection(
            *(model, shapes, options.platforms),
            for_tensorflow=kind == 'saved_model',
          )
        made[_name(canvas)] = one
        bar.update()
      yield kind, made


def _write(folder, kind, programs, weights):
  """Writes the programs of a format, its weights and its example."""
  if kind == 'saved_model':
    from maskrcnn_jax.export import saved_model

    saved_model.write(folder / kind, programs, weights)
    return
  for name, each in programs.items():
    if kind == 'onnx':
      (folder / f'{name}.onnx').write_bytes(each.SerializeToString())
    else:
      (folder / f'{name}.jax_export').write_bytes(each.serialize())
  if kind == 'stablehlo':
    np.savez(folder / _WEIGHTS, **weights)
  example = pathlib.Path(__file__).with_name(_EXAMPLE)
  shutil.copyfile(example, folder / _EXAMPLE)


def _entry(canvas, fit, formats):
  """The entry of a canvas in `export.json`."""
  entry = {'canvas': list(canvas), 'fit': list(fit)}
  if 'stablehlo' in formats:
    entry['program'] = f'{_name(canvas)}.jax_export'
  if 'saved_model' in formats:
    entry['signature'] = _name(canvas)
  if 'onnx' in formats:
    entry['onnx'] = f'{_name(canvas)}.onnx'
  return entry


def _model(section):
  """The model of a config, unless a part of it is outside of programs."""
  model = MaskRCNN.from_config(section)
  if model.detections.nms == 'mask':
    raise UserError(
      'model.detections.nms=mask ends outside of the model, which an exported '
      'program cannot do: train with class or all.',
      argument='model.detections.nms',
      given='mask',
      wanted=('class', 'all'),
    )
  return model


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
