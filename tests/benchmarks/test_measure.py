"""Arithmetic of measurements by hand; the compiler's counts on known work."""

import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.benchmarks import machine, measure
from maskrcnn_jax.ops import convolution


def test_timing_by_hand():
  times = [0.5, 0.25, 4.0]
  assert measure.timing(times, images=3) == {
    'seconds': {'median': 0.5, 'lowest': 0.25, 'highest': 4.0, 'all': times},
    'images_per_second': 6.0,
  }
  assert measure.timing([1.0, 2.0])['seconds']['median'] == 1.5


def test_a_ratio_is_of_medians_and_its_spread_of_rounds():
  # Medians 2 and 4; rounds 1/4, 2/8 and 6/2.
  rows = [measure.timing(x) for x in ([1.0, 2.0, 6.0], [4.0, 8.0, 2.0])]
  ours, theirs = measure.add_ratios(rows)
  assert theirs['ratio'] == {'median': 0.5, 'lowest': 0.25, 'highest': 3.0}
  assert 'ratio' not in ours
  with pytest.raises(ValueError):
    measure.add_ratios([measure.timing([1.0, 2.0]), measure.timing([1.0])])


def test_sides_take_turns_and_warm_up_does_not_count():
  calls = []

  def side(name, **options):
    def seconds(number):
      calls.append((name, number))
      return float(number)

    return measure.Side(seconds, **options)

  sides = {'a': side('a', images=3, facts={'b': 1}), 'b': side('b', program={})}
  first, second = measure.run(sides, rounds=2, warmup=1)
  assert calls == [(name, number) for number in range(3) for name in 'ab']
  assert first == {'name': 'a', 'b': 1, **measure.timing([1.0, 2.0], 3)}
  assert second == {'name': 'b', **measure.timing([1.0, 2.0])}


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
  run, program = measure.compile_program(lambda a, b: a @ b, a, b)
  assert program['flops'] == pytest.approx(2 * 256 * 512 * 128, rel=0.01)
  moved = jnp.dtype(dtype).itemsize * (256 * 512 + 512 * 128 + 256 * 128)
  assert program['memory']['least_moved'] == moved
  assert program['bytes_accessed'] >= moved
  assert program['memory']['needed'] >= moved
  assert program['compile_seconds'] > 0
  np.testing.assert_array_equal(run(a, b), jnp.full((256, 128), 512, dtype))


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
  gradients = jax.grad(
    lambda x, k: jnp.sum(convolve(x, k) ** 2), argnums=(0, 1)
  )
  # Forward, gradient of the images, gradient of the kernel.
  for function, times, rel in ((convolve, 1, 0.01), (gradients, 3, 0.02)):
    _, program = measure.compile_program(function, images, kernel)
    assert program['flops'] == pytest.approx(times * forward, rel=rel)


def test_winograd_counts_as_the_convolution_it_replaces():
  images, kernel = jnp.ones((128, 14, 14, 32)), jnp.ones((3, 3, 32, 32))
  _, program = measure.compile_program(convolution.convolve, images, kernel)
  wanted = 2 * 128 * 14 * 14 * 3 * 3 * 32 * 32
  # Less at the border, where the kernel hangs over.
  assert program['flops'] == pytest.approx(wanted, rel=0.1)


def test_outputs_in_the_place_of_arguments_are_not_counted_twice():
  x = jnp.ones(2**16)
  donated = jax.jit(lambda x: x + 1, donate_argnums=0)
  kept, memory = (
    measure.compile_program(f, x)[1]['memory']
    for f in (lambda x: x + 1, donated)
  )
  assert memory['aliased'] == x.nbytes
  assert kept['needed'] - memory['needed'] == x.nbytes


@pytest.mark.parametrize(
  'dtype, share',
  [('float32', 0.25), ('bfloat16', 0.125), ('bfloat16_products', 0.125)],
)
def test_a_floor_is_the_longer_of_work_and_what_must_be_moved(dtype, share):
  program = {'flops': 100e9, 'bytes_accessed': 30e9}
  program['memory'] = {'least_moved': 20e9}
  step = {'seconds': {'median': 4.0}, 'program': program}
  other = {'name': 'does not fit'}
  peaks = {'float32': 100e9, 'bfloat16': 200e9, 'bandwidth': 10e9}
  measure.add_floors([step, other], peaks, dtype)
  # 2 s to move 20 GB, of 4 s; 100 GFLOP in 4 s.
  assert step['floor'] == {'seconds': 2.0, 'bound': 'memory'}
  assert step['gap_seconds'] == 2.0
  assert step['traffic_seconds'] == 3.0
  assert step['peak_share'] == share
  assert 'floor' not in other


def test_small_products_and_copies():
  found = machine.measure_peaks(rounds=2, sides=(64, 256), copy_bytes=2**22)
  # From a slow core to more than any device has.
  assert 1e7 < found['float32'] < 1e17 and 1e7 < found['bfloat16'] < 1e17
  assert 1e7 < found['bandwidth'] < 1e14


# Works for a while, says when it starts and ends, waits to be ended.
_BUSY = (
  'import sys, time\n'
  'print(time.process_time(), flush=True)\n'
  'end = time.process_time() + 0.6\n'
  'while time.process_time() < end: pass\n'
  'print(time.process_time(), flush=True)\n'
  'sys.stdin.read()\n'
)


@pytest.mark.skipif(machine.busy_seconds() is None, reason='needs Linux')
def test_only_what_is_not_ours_counts():
  with subprocess.Popen(
    [sys.executable, '-c', _BUSY],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as busy:
    cpu_seconds = float(busy.stdout.readline())
    load = machine.OtherLoad(lambda: 0.0)
    with_it = machine.OtherLoad(lambda: cpu_seconds)
    start = time.monotonic()
    cpu_seconds = float(busy.stdout.readline())
    others, rest = load.read(), with_it.read()
    wall = time.monotonic() - start
    busy.stdin.close()
  # The readings are some ms apart, in which others may work on both CPUs.
  assert others - rest == pytest.approx(0.6 / wall, rel=0.15, abs=0.05)
