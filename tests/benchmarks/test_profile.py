"""Time by stage: a program's text, events by hand, and a trace of JAX."""

import jax
import jax.numpy as jnp
import pytest

from maskrcnn_jax.benchmarks import measure, profile


def _line(name, opcode, path, root=''):
  """An instruction as the compiler prints it, with its operation's path."""
  start = (
    f'  {root}%{name} = (f32[4]{{0:T(128)}}, f32[8]{{0}}) {opcode}(%a, %b)'
  )
  return (
    f'{start}, kind=kLoop, metadata={{op_name="jit(step)/{path}" line=3}}\n'
  )


BACKWARD = 'transpose(jvp(MaskRCNN))'
TEXT = (
  'HloModule jit_step\n\n%region_0 (a: f32[]) -> f32[] {\n'
  '  ROOT %add.1 = f32[] add(%a, %b)\n}\n\nENTRY %main () -> f32[4] {\n'
  + _line('fusion.3', 'fusion', 'jvp(M)/MaskRCNN.pyramid/backbone/stage3/dot')
  + _line('fusion.4', 'fusion', f'{BACKWARD}/MaskRCNN.pyramid/fpn/add')
  + _line('while.5', 'while', 'MaskRCNN.sample/while')
  + '  %copy.6 = f32[4]{0} copy(%while.5)\n'
  + _line('call.7', 'scatter', f'{BACKWARD}/MaskRCNN.align/align7/add', 'ROOT ')
  + '}\n'
)


def test_stages_of_instructions():
  stages = profile.stages_of(TEXT)
  assert stages['fusion.3'] == stages['fusion_3'] == 'backbone stage3, forward'
  assert stages['fusion.4'] == 'FPN, backward'
  assert stages['while.5'] is None  # Its body counts.
  assert stages['copy.6'] == 'copies without a name'
  assert stages['call.7'] == 'RoIAlign 7x7, backward'


def test_rows_by_stage():
  traced = [
    ('fusion.3', 0.5, True),
    ('fusion_3', 0.25, True),
    ('while.5', 9.0, True),
    ('sm90_gemm', 0.25, True),
    ('fusion.4', 1.0, True),
    ('Python', 7.0, False),
  ]
  rows = profile.stage_rows(profile.stages_of(TEXT), traced, steps=2)
  found = [
    (row['name'], row['seconds']['median'], row['share'], row['kernels'])
    for row in rows
  ]
  assert found == [
    ('FPN, backward', 0.5, 0.5, 0),
    ('backbone stage3, forward', 0.375, 0.375, 1),
    ('kernels without a name', 0.125, 0.125, 0),
  ]


def test_a_trace_of_jax(tmp_path):
  """A forward and a backward pass of a stage, and what is outside it."""

  @jax.value_and_grad
  def loss(x):
    with jax.named_scope('backbone'):
      y = jnp.sin(x @ x)
    return jnp.sum(y**2)

  x = jnp.ones((256, 256))
  compiled = jax.jit(loss).lower(x).compile()
  side = measure.Side(
    lambda _: measure.seconds_of(compiled, x)[0], compiled=compiled
  )
  rows = profile.run(side, 3, 1, str(tmp_path))
  # A product forward and two backward.
  flops = {row['name']: (row['program'] or {}).get('flops') for row in rows}
  assert flops['backbone stem, forward'] == 2 * 256**3
  assert flops['backbone stem, backward'] == 4 * 256**3
  seconds = {row['name']: row['seconds']['median'] for row in rows}
  assert {'backbone stem, forward', 'backbone stem, backward'} <= seconds.keys()
  assert all(0 < value < 1 for value in seconds.values())
  assert sum(row['share'] for row in rows) == pytest.approx(1)
