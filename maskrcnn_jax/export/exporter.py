"""Writes a trained model as files that run without this package."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping

import jax
import numpy as np
import tqdm

from maskrcnn_jax import __version__
from maskrcnn_jax.checkpoints import store as checkpoint
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.export import description, program
from maskrcnn_jax.export import options as options_lib
from maskrcnn_jax.export.options import ExportOptions
from maskrcnn_jax.input_pipeline import transforms
from maskrcnn_jax.models import override
from maskrcnn_jax.models.mask_rcnn import MaskRCNN

# What is written beside the programs.
ABOUT, WEIGHTS, EXAMPLE = 'export.json', 'weights.npz', 'detect.py'


def export(
  source: str | os.PathLike,
  output: str | os.PathLike,
  options: ExportOptions | None = None,
) -> str:
  """Writes the programs of a model, its weights and how to use them.

  The folder appears when it is complete.

  Args:
    source: a workdir, or one checkpoint of it.
    output: folder to be made; it may be there if it is empty.
    options: see there; None: its defaults.

  Returns:
    What was written, for people.

  Raises:
    FileNotFoundError: there is no checkpoint.
    CorruptCheckpointError: it is not what was saved.
    ValueError: the output is not empty, a size does not fit the run, or this
      jax cannot make a SavedModel that this TensorFlow can read.
  """
  options = options or ExportOptions()
  output = pathlib.Path(output)
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise UserError(
      f'--output {output} is not empty; it is left as it is. Name a new folder.'
    )
  if 'saved_model' in options.formats:
    from maskrcnn_jax.export import saved_model

    saved_model.check()
  variables, config = checkpoint.restore(source)
  options, fits, exact_sizes = _complete(options, config.input)
  weights = program.flatten_weights(variables)
  programs = _programs(MaskRCNN.from_config(config.model), weights, options)
  shapes = {}
  with _new_folder(output) as folder:
    for kind, found in programs:
      shapes = _output_shapes(next(iter(found.values())))
      if kind == 'saved_model':
        saved_model.write(folder / kind, found, weights)
        continue
      for name, made in found.items():
        (folder / f'{name}.jax_export').write_bytes(made.serialize())
      np.savez(folder / WEIGHTS, **weights)
      shutil.copyfile(
        pathlib.Path(__file__).with_name(EXAMPLE), folder / EXAMPLE
      )
    about = description.describe(
      [_entry(*x, options.formats) for x in zip(options.canvases, fits)],
      shapes,
      options.batch_size,
      options.image_dtype,
      options.platforms,
      exact_sizes,
      checkpoint.read_classes(source),
      {'step': checkpoint.step_of(source), 'made_with': _versions()},
    )
    (folder / ABOUT).write_text(
      json.dumps(about, indent=2, ensure_ascii=False) + '\n', encoding='utf-8'
    )
  return _summary(output)


def _complete(options: ExportOptions, inputs: Mapping):
  """Options with what the run says, the size an image may fill, exact_sizes."""
  resize = override.make(
    transforms.ResizeOptions, inputs.get('resize') or {}, 'input.resize'
  )
  options = dataclasses.replace(
    options,
    canvases=options.canvases or tuple(map(tuple, inputs.canvases)),
    image_dtype=options.image_dtype or inputs.get('image_dtype', 'uint8'),
  )
  if options.image_dtype not in transforms.IMAGE_DTYPES:
    raise UserError(
      f'--image_dtype must be one of {", ".join(transforms.IMAGE_DTYPES)}, got '
      f'{options.image_dtype!r}.'
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


@contextlib.contextmanager
def _new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder that gets its name when all is in it, and else is removed."""
  path = path.absolute()  # A plain dot cannot be renamed to.
  path.parent.mkdir(parents=True, exist_ok=True)
  folder = pathlib.Path(
    tempfile.mkdtemp('.unfinished', f'.{path.name}-', path.parent)
  )
  try:
    yield folder
    folder.chmod(0o755)  # So far it is for its owner alone.
    folder.replace(path)
  except BaseException:
    shutil.rmtree(folder, ignore_errors=True)
    raise


def _entry(canvas, fit, formats):
  """What `export.json` says of a canvas."""
  entry = {'canvas': list(canvas), 'fit': list(fit)}
  if 'stablehlo' in formats:
    entry['program'] = f'{_name(canvas)}.jax_export'
  if 'saved_model' in formats:
    entry['signature'] = _name(canvas)
  return entry


def _output_shapes(exported):
  """(shape, dtype) of every output; a size that is open as its name."""
  outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
  return {
    name: (
      [x if isinstance(x, int) else str(x) for x in output.shape],
      str(output.dtype),
    )
    for name, output in outputs.items()
  }


def _versions():
  return {'maskrcnn_jax': __version__, 'jax': jax.__version__}


def _summary(output: pathlib.Path) -> str:
  """The files of an export and their sizes."""
  lines = [f'{output} holds']
  for path in sorted(output.iterdir()):
    files = [path] if path.is_file() else path.rglob('*')
    size = sum(x.stat().st_size for x in files if x.is_file())
    lines.append(f'  {path.name:30} {size / 1e6:9.2f} MB')
  return '\n'.join(lines)


def _name(canvas):
  return f'detect_{options_lib.size_name(canvas)}'
