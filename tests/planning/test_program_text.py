"""Collectives of a text by hand, and of a program for two devices."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from maskrcnn_jax.planning import program_text

ROOT = pathlib.Path(__file__).parents[2]

# As XLA prints it: layouts with brackets of their own, tuples with comments,
# asynchronous forms, a loop of known length around one of unknown length.
TEXT = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner_body.1 (x: u32[]) -> u32[] {
  %x = u32[]{:T(128)} parameter(0)
  ROOT %all-reduce.9 = u32[]{:T(128)} all-reduce(%x), to_apply=%add, metadata={op_name="jit(step)/nms/while" stack_frame_id=7}
}

%outer_body (y: u32[]) -> u32[] {
  %y = u32[] parameter(0)
  %permuted = u32[] collective-permute(%y), source_target_pairs={{0,1},{1,0}}
  ROOT %while.2 = u32[] while(%permuted), condition=%is_left, body=%inner_body.1
}

%is_left (z: u32[]) -> pred[] {
  %z = u32[] parameter(0)
  ROOT %less = pred[] compare(%z, %z), direction=LT
}

%wrapped (w: bf16[4,8]) -> bf16[2,8] {
  %w = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %scattered = bf16[2,8]{1,0} reduce-scatter(%w), dimensions={0}, to_apply=%add
}

ENTRY %main.3_spmd (p0: f32[32,4], p1: f32[8]) -> f32[32,4] {
  %p0 = f32[32,4]{1,0:T(8,128)S(1)} parameter(0)
  %p1 = f32[8]{0} parameter(1)
  %all-reduce.1 = (f32[32,4]{1,0:T(8,128)}, /*index=1*/f32[8]{0}) all-reduce(%p0, %p1), channel_id=1, to_apply=%add, metadata={op_name="jit(step)/transpose(jvp(model))/dot"}
  %gather-start = (f32[8]{0}, f32[16]{0}) all-gather-start(%p1), channel_id=2, dimensions={0}, metadata={op_name="jit(step)/top_k"}
  %gather-done = f32[16]{0} all-gather-done(%gather-start)
  %cast = bf16[4,8]{1,0} fusion(%p0), kind=kLoop, calls=%add
  %async-start = ((bf16[4,8]{1,0}), bf16[2,8]{1,0}, u32[]) async-start(%cast), calls=%wrapped
  %async-done = bf16[2,8]{1,0} async-done(%async-start)
  %count = u32[] constant(0)
  %while.1 = u32[] while(%count), condition=%is_left, body=%outer_body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %result = f32[32,4]{1,0} get-tuple-element(%all-reduce.1), index=0
}
"""  # noqa: E501


def test_collectives_of_a_text_by_hand():
  found = program_text.find_collectives(TEXT)
  gradient = 'jit(step)/transpose(jvp(model))/dot'
  assert set(found) == {
    program_text.Collective('all-reduce', (32 * 4 + 8) * 4, gradient, 1),
    program_text.Collective('all-gather', 16 * 4, 'jit(step)/top_k', 1),
    program_text.Collective('reduce-scatter', 4 * 8 * 2, '', 1),
    program_text.Collective('collective-permute', 4, '', 5),
    program_text.Collective('all-reduce', 4, 'jit(step)/nms/while', None),
  }
  assert len(found) == 5


def test_summary_counts_known_loops_and_names_others():
  rows = program_text.summary(program_text.find_collectives(TEXT))
  permuted = next(row for row in rows if row['kind'] == 'collective-permute')
  assert permuted == {
    'kind': 'collective-permute',
    'source': '',
    'times': 5,
    'count': 1,
    'bytes': 20,
  }
  assert [row['bytes'] for row in rows] == [544, 64, 64, 20, 4]
  # Twice around for the all-reduce; the loop of unknown length is skipped.
  sent = (2 * 544 + 64 + 64 + 20) * 7 / 8
  assert program_text.sent_bytes(rows, 8) == sent
  assert program_text.sent_bytes(rows, 1) == 0


@pytest.mark.parametrize(
  'type_, size',
  [
    ('f32[]', 4),
    ('pred[3]', 3),
    ('s4[3]', 2),
    ('f8e4m3fn[10]', 10),
    ('bf16[2,3]{1,0:T(8,128)(2,1)S(1)}', 12),
    ('f32[<=5,2]', 40),
    ('c64[2]', 16),
    ('token[]', 0),
    ('(f32[2]{0}, /*index=1*/u32[])', 12),
  ],
)
def test_size_of_a_type(type_, size):
  assert program_text.size(type_) == size


def test_a_text_without_entry_is_refused():
  with pytest.raises(ValueError, match='ENTRY'):
    program_text.find_collectives('HloModule nothing')
  one = 'ENTRY %main (x: f32[]) -> f32[] {\n  ROOT %x = f32[] parameter(0)\n}'
  assert program_text.find_collectives(one) == []


# Gradients of two arrays, batch split over two devices.
PROGRAM = """
import json
import jax
import jax.numpy as jnp
from maskrcnn_jax.planning import program_text
from maskrcnn_jax.distributed import mesh as sharding

mesh = sharding.make_mesh()
def loss(params, x):
  return jnp.mean((jnp.tanh(x @ params['w']) + params['b']) ** 2)
step = jax.jit(
  jax.grad(loss),
  in_shardings=(sharding.replicated(mesh), sharding.batch_sharding(mesh)),
  out_shardings=sharding.replicated(mesh),
)
params = {'w': jnp.ones([64, 32]), 'b': jnp.ones(32)}
compiled = step.lower(params, jnp.ones([8, 64])).compile()
found = program_text.find_collectives(compiled.as_text())
print(json.dumps(program_text.summary(found)))
"""


def test_all_reduces_of_a_program_for_two_devices_are_its_gradients():
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
    'PYTHONPATH': str(ROOT),
  }
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  rows = json.loads(done.stdout)
  assert {row['kind'] for row in rows} == {'all-reduce'}
  assert {row['times'] for row in rows} == {1}
  assert sum(row['bytes'] for row in rows) == (64 * 32 + 32) * 4
