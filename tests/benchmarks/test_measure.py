"""Arithmetic of measurements by hand; the compiler's counts on known work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.benchmarks import measure
from maskrcnn_jax.ops import convolution


def test_throughput_by_hand():
  assert measure.throughput([0.5, 0.25, 4.0], batch_size=3) == {
    'seconds': {
      'median': 0.5,
      'lowest': 0.25,
      'highest': 4.0,
      'all': [0.5, 0.25, 4.0],
    },
    'images_per_second': 6.0,
  }
  assert measure.summary([1.0, 2.0])['median'] == 1.5


def test_a_ratio_is_of_medians_and_its_spread_of_rounds():
  # Medians 2 and 4; rounds 1/4, 2/8 and 6/2.
  seconds = {'ours': [1.0, 2.0, 6.0], 'theirs': [4.0, 8.0, 2.0]}
  values = measure.compare(seconds, batch_size=2)
  assert values['theirs']['images_per_second'] == 0.5
  ratio = {'median': 0.5, 'lowest': 0.25, 'highest': 3.0}
  assert values['ratios'] == {'theirs': ratio}
  assert 'ratios' not in measure.compare({'ours': [1.0]}, batch_size=2)


def test_a_ratio_needs_the_same_rounds():
  with pytest.raises(ValueError):
    measure.compare({'ours': [1.0, 2.0], 'theirs': [1.0]}, batch_size=2)


def test_sides_take_turns_and_warm_up_does_not_count():
  calls = []

  def side(name):
    def run(number):
      calls.append((name, number))
      return float(number)

    return run

  seconds = measure.alternate(
    {'a': side('a'), 'b': side('b')}, rounds=2, warmup=1
  )
  assert calls == [(name, number) for number in range(3) for name in 'ab']
  assert seconds == {'a': [1.0, 2.0], 'b': [1.0, 2.0]}


def test_the_seconds_of_a_call_last_until_its_result_is_there():
  x = jnp.ones((400, 400))

  @jax.jit
  def long(x):
    return jax.lax.fori_loop(0, 60, lambda _, y: y @ x / 400.0, x)

  measure.seconds_of(long, x)
  seconds, result = measure.seconds_of(long, x)
  # 60 products of 128 MFLOP: no machine does them in a tenth of a ms, which is
  # what handing them to the device takes.
  assert seconds > 1e-4
  np.testing.assert_allclose(result, 1.0, rtol=1e-3)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_operations_of_a_product(dtype):
  a, b = jnp.ones((256, 512), dtype), jnp.ones((512, 128), dtype)
  program = measure.compile_program(lambda a, b: a @ b, a, b)
  assert program.flops == pytest.approx(2 * 256 * 512 * 128, rel=0.01)
  itemsize = jnp.dtype(dtype).itemsize
  moved = itemsize * (256 * 512 + 512 * 128 + 256 * 128)
  assert program.memory['least_moved'] == moved
  assert program.bytes_accessed >= moved
  assert program.memory['needed'] >= moved


def test_operations_of_a_convolution_and_of_its_gradients():
  images, kernel = jnp.ones((2, 32, 32, 16)), jnp.ones((3, 3, 16, 24))

  def convolve(images, kernel):
    return jax.lax.conv_general_dilated(
      images,
      kernel,
      (1, 1),
      'VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  forward = 2 * 2 * 30 * 30 * 3 * 3 * 16 * 24
  program = measure.compile_program(convolve, images, kernel)
  assert program.flops == pytest.approx(forward, rel=0.01)
  gradients = jax.grad(
    lambda x, k: jnp.sum(convolve(x, k) ** 2), argnums=(0, 1)
  )
  program = measure.compile_program(gradients, images, kernel)
  # Forward, gradient of the images, gradient of the kernel.
  assert program.flops == pytest.approx(3 * forward, rel=0.02)


def test_winograd_counts_as_the_convolution_it_replaces():
  images, kernel = jnp.ones((128, 14, 14, 32)), jnp.ones((3, 3, 32, 32))
  program = measure.compile_program(convolution.convolve, images, kernel)
  wanted = 2 * 128 * 14 * 14 * 3 * 3 * 32 * 32
  # Less at the border, where the kernel hangs over.
  assert program.flops == pytest.approx(wanted, rel=0.1)


def test_outputs_in_the_place_of_arguments_are_not_counted_twice():
  x = jnp.ones(2**16)
  donated = jax.jit(lambda x: x + 1, donate_argnums=0)
  kept = measure.compile_program(lambda x: x + 1, x).memory
  memory = measure.compile_program(donated, x).memory
  assert memory['aliased'] == x.nbytes
  assert kept['needed'] - memory['needed'] == x.nbytes


def test_costs_are_all_but_the_program():
  program = measure.compile_program(lambda x: x + 1, jnp.ones(4))
  costs = program.costs()
  assert 'run' not in costs
  assert costs['compile_seconds'] > 0
  np.testing.assert_array_equal(program.run(jnp.ones(4)), 2 * np.ones(4))
