"""The backbone alone, forward and backward, alone or beside PyTorch's."""

from typing import Any

import jax
import jax.numpy as jnp

from maskrcnn_jax.benchmarks import measure, model_stages
from maskrcnn_jax.benchmarks.subject import Subject
from maskrcnn_jax.benchmarks.torchvision_process import TorchvisionProcess


def run(
  subject: Subject,
  other: TorchvisionProcess | None = None,
  rounds: int = 5,
  warmup: int = 2,
) -> dict[str, Any]:
  """Times of the gradients of a ResNet's parameters, from normalised images.

  Args:
    subject: whose backbone it is; what is frozen in it stays so.
    other: with the same model, weights and batches; None: none.
    rounds: that count.
    warmup: rounds before them.

  Returns:
    As `train_step.run`.
  """
  model = subject.model
  variables = subject.state().variables()
  pixels = [
    jax.jit(
      lambda images, sizes: model_stages.normalized(model, images, sizes)
    )(batch['images'], batch['image_sizes'])
    for batch in subject.batches()
  ]
  program = measure.compile_program(
    lambda variables, pixels: _gradients(model, variables, pixels),
    variables,
    pixels[0],
  )

  def ours(number):
    x = pixels[number % len(pixels)]
    return measure.seconds_of(program.run, variables, x)[0]

  sides = {'ours': ours}
  if other:
    other.load_weights(variables)
    sides['torchvision'] = lambda number: other.ask('backbone', number=number)[
      'seconds'
    ]
  seconds = measure.alternate(sides, rounds, warmup, 'backbone')
  result = {
    name: measure.throughput(seconds[name], subject.batch_size)
    for name in sides
  }
  result['ours']['program'] = program.costs()
  if other:
    result['ratios'] = {
      'torchvision': measure.ratio(seconds['ours'], seconds['torchvision'])
    }
  return result


def _gradients(model, variables, pixels):
  """Features, and the gradients of their sum."""

  def features(params):
    return model.apply(
      {'params': {'backbone': params}, 'batch_stats': variables['batch_stats']},
      pixels,
      train=True,
      method=lambda model, x, train: model.resnet(x, None, train),
      mutable=['batch_stats'],
    )[0]

  maps, vjp = jax.vjp(features, variables['params']['backbone'])
  return maps, vjp(jax.tree.map(jnp.ones_like, maps))[0]
