"""The `maskrcnn-jax` command: a verb and flags become one function call.

Everything heavy is imported inside the verb, so `--help` is instant.
"""

import argparse
import difflib
import re
import sys

from maskrcnn_jax import command_line
from maskrcnn_jax.benchmarks import verb as bench_verb
from maskrcnn_jax.checking import verb as check_verb
from maskrcnn_jax.export import verb as export_verb
from maskrcnn_jax.inference import verb as predict_verb


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code.

  Args:
    argv: the arguments after the command's name; those of the process if None.
  """
  argv = sys.argv[1:] if argv is None else argv
  parser = _parser()
  try:
    overrides, rest = command_line.split_overrides(argv)
  except ValueError as error:
    parser.error(str(error))
  args = parser.parse_args(rest)
  if overrides and 'config' not in args:
    parser.error(f'{args.verb} takes no --config.{overrides[0]}.')
  args.override = overrides
  return command_line.run(
    f'maskrcnn-jax {args.verb}', lambda: args.run(args), args.debug
  )


def _prepare(args) -> None:
  from maskrcnn_jax.datasets import prepare

  summary = prepare.prepare(
    args.images,
    args.annotations,
    args.output,
    args.num_shards,
    args.num_workers,
    args.captions,
    args.image_ids,
    args.format,
    args.classes,
  )
  print(summary)


def _train(args) -> None:
  config, loop = _start(args)
  loop.train(config, args.workdir)


def _eval(args) -> None:
  config, loop = _start(args)
  loop.evaluate(config, args.workdir, args.step, args.checkpoint)


def _train_and_eval(args) -> None:
  config, loop = _start(args)
  loop.train_and_evaluate(config, args.workdir)


def _plan(args) -> None:
  from maskrcnn_jax.planning import topologies

  topologies.check_names(args.topology)
  topologies.prepare(args.topology)
  from maskrcnn_jax import config as config_lib

  config = config_lib.load_config(args.config, args.override)
  if 'here' in args.topology:
    from maskrcnn_jax import backends

    backends.pick_backend(config.get('runtime', {}).get('backend', 'auto'))
  from maskrcnn_jax import plan

  given = {override.partition('=')[0] for override in args.override}
  plan.plan(
    config,
    args.topology,
    args.batch_per_device,
    args.output,
    'optimizer.learning_rate' in given,
  )


def _bench(args) -> None:
  bench_verb.run(args)


def _import_weights(args) -> None:
  conversion = _on_the_cpu()
  print(
    conversion.import_weights(
      args.source, args.output, args.config, args.override
    )
  )


def _export_weights(args) -> None:
  print(_on_the_cpu().export_weights(args.checkpoint, args.output))


def _on_the_cpu():
  """The module that converts weights, which needs no accelerator."""
  from maskrcnn_jax import backends

  backends.pick_backend('cpu')
  from maskrcnn_jax.training import conversion

  return conversion


def _start(args):
  """The config and the loop, once the backend is chosen."""
  from maskrcnn_jax import config as config_lib

  config = config_lib.load_config(args.config, args.override)
  from maskrcnn_jax import runtime

  runtime.start(config.runtime)
  from maskrcnn_jax.training import finetuning, loop

  finetuning.complete(config, args.workdir, args.override)
  return config, loop


class _Parser(argparse.ArgumentParser):
  """A parser whose errors say what was meant."""

  def error(self, message):
    match = re.search(
      r"invalid choice: '([^']*)' \(choose from (.*)\)", message
    )
    if match:
      verbs = re.findall(r'\w+', match[2])
      message = f'There is no verb {match[1]!r}{_suggest(match[1], verbs)}'
      message += f' Verbs: {", ".join(verbs)}.'
    self.exit(2, f'{self.prog}: {message}\n')

  def parse_args(self, args=None, namespace=None):
    parsed, rest = self.parse_known_args(args, namespace)
    if rest:
      verb = self.verbs.choices[parsed.verb]
      flags = [flag for flag in verb._option_string_actions if flag[:2] == '--']
      given = rest[0].partition('=')[0]
      self.error(
        f'{parsed.verb} has no flag {given!r}{_suggest(given, flags)} '
        f'Flags: {", ".join(sorted(flags))}.'
      )
    return parsed


def _parser() -> _Parser:
  parser = _Parser(
    prog='maskrcnn-jax',
    description='Mask R-CNN in JAX and Flax.',
    epilog='maskrcnn-jax VERB --help lists the flags of a verb.',
    allow_abbrev=False,
  )
  parser.verbs = parser.add_subparsers(dest='verb', metavar='VERB')
  parser.verbs.required = True
  _add_prepare(parser.verbs)
  verb = _add_verb(
    parser.verbs, 'check', check_verb.run, 'find what is wrong with a data set'
  )
  check_verb.add_flags(verb)
  _add_config(verb, required=False)
  for name, run, words in (
    ('train', _train, 'train, or resume a run'),
    ('eval', _eval, 'evaluate a checkpoint of a run'),
    ('train_and_eval', _train_and_eval, 'train, evaluating on the way'),
  ):
    verb = _add_verb(parser.verbs, name, run, words)
    _add_config(verb)
    verb.add_argument(
      '--workdir', required=True, help='checkpoints, metrics and pictures'
    )
    if name == 'eval':
      verb.add_argument(
        '--step',
        type=_step,
        metavar='STEP',
        help='checkpoint; best: by training.keep_best; default: newest',
      )
      verb.add_argument(
        '--checkpoint',
        metavar='PATH',
        help='evaluate this instead: a checkpoint of another run, or weights '
        'of a Mask R-CNN by torchvision, Detectron2 or TensorFlow',
      )
  _add_import_weights(parser.verbs)
  _add_export_weights(parser.verbs)
  verb = _add_verb(
    parser.verbs, 'predict', predict_verb.run, 'find objects in image files'
  )
  predict_verb.add_flags(verb)
  verb = _add_verb(
    parser.verbs, 'export', export_verb.run, 'files that run without this'
  )
  export_verb.add_flags(verb)
  _add_plan(parser.verbs)
  verb = _add_verb(
    parser.verbs, 'bench', _bench, 'measure speed, also beside torchvision'
  )
  _add_config(verb)
  bench_verb.add_flags(verb)
  return parser


def _add_import_weights(verbs) -> None:
  verb = _add_verb(
    verbs, 'import_weights', _import_weights, 'weights of others -> checkpoint'
  )
  verb.add_argument(
    '--source',
    required=True,
    metavar='FILE',
    help='a .pth, .pkl, .npz or .safetensors by torchvision, timm or '
    'Detectron2, or the prefix of a TensorFlow checkpoint',
  )
  verb.add_argument(
    '--output', required=True, metavar='DIR', help='workdir to be made'
  )
  _add_config(verb, 'the weights tell it', required=False)


def _add_export_weights(verbs) -> None:
  verb = _add_verb(
    verbs, 'export_weights', _export_weights, "checkpoint -> torchvision's"
  )
  verb.add_argument(
    '--checkpoint',
    required=True,
    metavar='PATH',
    help='a workdir, or one checkpoint of it',
  )
  verb.add_argument(
    '--output',
    required=True,
    metavar='FILE',
    help='to be made: .pth, .safetensors or .npz',
  )


def _add_config(verb, default: str = '', required: bool = True) -> None:
  verb.add_argument(
    '--config',
    required=required,
    metavar='NAME[:VARIANT]',
    help='a shipped config such as shapes or coco:habana_1x, or a path'
    + (f'; default: {default}' if default else ''),
  )
  verb.add_argument(  # For the help; `split_overrides` takes these out.
    '--config.SECTION.FIELD',
    dest='override',
    metavar='VALUE',
    help='change a field, such as --config.input.batch_size=8',
  )


def _add_plan(verbs) -> None:
  verb = _add_verb(
    verbs, 'plan', _plan, 'compile the training step for devices one has not'
  )
  _add_config(verb)
  verb.add_argument(
    '--topology',
    required=True,
    type=lambda text: text.split(','),
    metavar='NAME,NAME,...',
    help='slices of TPUs such as v5e:4x4 or v5p:2x2x1, here, cpu:8',
  )
  verb.add_argument(
    '--batch_per_device',
    type=_whole_numbers,
    metavar='N,N,...',
    help='images; by default what the batch of the config gives each device',
  )
  verb.add_argument('--output', help='folder of plan.json and plan.png')


def _step(text: str) -> int | str:
  if text != 'best' and not text.isdecimal():
    raise argparse.ArgumentTypeError(
      f'must be a number of steps or best, got {text!r}.'
    )
  return text if text == 'best' else int(text)


def _whole_numbers(text: str) -> list[int]:
  if not re.fullmatch(r'\d+(,\d+)*', text):
    raise argparse.ArgumentTypeError(
      f'must be whole numbers such as 4,8,12, got {text!r}.'
    )
  return [int(word) for word in text.split(',')]


def _add_prepare(verbs) -> None:
  verb = _add_verb(verbs, 'prepare', _prepare, 'images, masks -> records')
  verb.add_argument('--images', required=True, help='folder of the images')
  verb.add_argument(
    '--annotations',
    required=True,
    help='COCO json; of other formats the folder of PNG or text files',
  )
  verb.add_argument(
    '--format',
    default='coco',
    metavar='NAME',
    help='coco; instance_png: a PNG for every image, of the numbers of its '
    'objects; object_png: a folder for every image, a PNG for every object; '
    'yolo: polygons in text files',
  )
  verb.add_argument(
    '--classes',
    metavar='NAME,NAME,...',
    help='of formats other than coco; or a file that lists them',
  )
  verb.add_argument(
    '--output', required=True, help='such as records/train-*.tfrecord'
  )
  verb.add_argument('--captions', help='COCO json of captions')
  verb.add_argument(
    '--image_ids',
    type=_whole_numbers,
    metavar='ID,ID,...',
    help='take these images only',
  )
  verb.add_argument('--num_shards', type=int, help='record files to write')
  verb.add_argument('--num_workers', type=int, help='processes to use')


def _add_verb(verbs, name, run, words):
  verb = verbs.add_parser(
    name, help=words, description=words, allow_abbrev=False
  )
  verb.set_defaults(run=run)
  verb.add_argument(
    '--debug', action='store_true', help='show the traceback of an error'
  )
  return verb


def _suggest(given: str, known: list[str]) -> str:
  near = difflib.get_close_matches(given, known, n=1)
  return f'; did you mean {near[0]}?' if near else '.'


if __name__ == '__main__':
  sys.exit(main())
