"""Scripts that run with eight CPU devices."""

import json
import sys

import job_process

NUM_DEVICES = 8

_SETUP = """
import functools, json, re, sys
import jax
import jax.numpy as jnp
import numpy as np
import quick
import tiny_model
from maskrcnn_jax.models import mask_rcnn
from maskrcnn_jax.ops import cpu_convolution
from maskrcnn_jax.checkpoints import store
from maskrcnn_jax.distributed import arrays
from maskrcnn_jax.distributed import mesh as mesh_lib
from maskrcnn_jax.distributed import model_sharding
from maskrcnn_jax.inference import detection
from maskrcnn_jax.planning import program_text
from maskrcnn_jax.training import train_state, train_step
arguments = [json.loads(text) for text in sys.argv[1:]]
"""

# A step on one device and on each of some meshes: the largest differences in
# every metric, gradient, parameter and statistic.
_COMPARE = r"""
options, counts, canvas, meshes = arguments
if any(mesh.get('spatial', 1) > 1 for mesh in meshes):
  # The CPU's gradient of a 1x1 kernel gathers the maps that devices share; the
  # form for GPUs and TPUs does not. Only there does sharing images pay, so that
  # form is tested here.
  cpu_convolution.product_kernel_gradient = functools.partial(
    jnp.einsum, '...i,...o->io'
  )
model = tiny_model.make_model(**options)
batch = tiny_model.make_batch(counts, canvas=canvas)
# The last image with objects is a filler.
batch['valid'][np.flatnonzero(counts)[-1]] = False
# The first without reaches into a third of its canvas.
batch['image_sizes'][counts.index(0)] = canvas[0] / 3, canvas[1] / 3
state, optimizer = tiny_model.make_state(model, batch)
poison = {**batch, 'images': batch['images'].copy()}
poison['images'][0, 0, 0] = np.nan
SMALLEST = 64  # Entries of an array that is split.


def put(shardings):
  # A copy, since the step is given its memory.
  return arrays.put(jax.tree.map(lambda x: x.copy(), state), shardings)


def same(*trees):
  equal = jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), *trees)
  return all(jax.tree.leaves(equal))


def step(num_devices, spatial=1, shard_state='none'):
  mesh = mesh_lib.make_mesh(num_devices, spatial)
  everywhere = mesh_lib.replicated(mesh)
  shardings = mesh_lib.state_shardings(state, mesh, shard_state, SMALLEST)
  laid_out = model_sharding.shard_model(model, mesh, shard_state, SMALLEST)
  step = jax.jit(
    functools.partial(train_step.train_step, laid_out, optimizer),
    in_shardings=(shardings, mesh_lib.input_shardings(mesh), everywhere),
    out_shardings=(shardings, everywhere),
    donate_argnums=0,
  )
  key = jax.device_put(jax.random.key(1), everywhere)
  inputs = put(shardings), arrays.put_batch(batch, mesh), key
  # Not quick.jit: sums that are not vectorised lose digits.
  compiled = step.lower(*inputs).compile()
  results = compiled(*inputs)
  momentum = jax.tree.leaves(results[0].opt_state)
  poisoned = put(shardings), arrays.put_batch(poison, mesh), key
  unchanged, _ = compiled(*poisoned)
  return {
    'results': jax.device_get(results),
    'donated': all(x.is_deleted() for x in jax.tree.leaves(inputs[0])),
    'skipped': same(unchanged, state.replace(step=state.step + 1)),
    'kept': jax.tree.map(lambda x: x.sharding, results[0]) == shardings,
    'optimizer_bytes': [
      sum(x.addressable_shards[i].data.nbytes for x in momentum)
      for i in range(num_devices)
    ],
    'repeated': [
      x.source for x in program_text.find_collectives(compiled.as_text())
      if x.times != 1
    ],
    'collectives': [
      line.strip() for line in compiled.as_text().splitlines()
      if re.search(r' (all-|collective-|reduce-scatter)[a-z-]*\(', line)
    ],
  }


def difference(expected, actual):
  expected, actual = np.float64(expected), np.float64(actual)
  largest = max(np.max(np.abs(expected)), 1e-30)
  return np.max(np.abs(expected - actual)) / largest


one = step(1)
reports = []
for mesh in meshes:
  other = step(**mesh)
  differences = jax.tree_util.tree_leaves_with_path(
    jax.tree.map(difference, one['results'], other.pop('results'))
  )
  named = {jax.tree_util.keystr(k): float(x) for k, x in differences}
  reports.append({**other, 'differences': named})
print(json.dumps({
  'metrics': {k: float(x) for k, x in one['results'][1].items()},
  'optimizer_bytes': one['optimizer_bytes'][0],
  'reports': reports,
}))
"""


def run_on_eight(script, *args):
  """JSON that a script prints.

  Args:
    script: may use what `_SETUP` imports.
    args: become its `arguments`, in the types of JSON.
  """
  done = job_process.execute(
    [sys.executable, '-c', _SETUP + script, *map(json.dumps, args)],
    timeout=1800,
    # Code that is not optimised would cost digits.
    XLA_FLAGS=f'--xla_force_host_platform_device_count={NUM_DEVICES} '
    '--xla_cpu_use_fusion_emitters=false',
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def compare(options, counts, canvas, meshes):
  """A step with random sampling on one device and on some meshes.

  Args:
    options: of `tiny_model.make_model`.
    counts: objects of each image, of one of them none.
    canvas: (height, width).
    meshes: `num_devices`, `spatial` and `shard_state` of each.

  Returns:
    metrics: of one device.
    optimizer_bytes: of one device.
    reports: for each mesh `differences` of every array of the results, as a
      part of its largest entry; `donated`, `kept` and `skipped`: the state was
      donated, keeps its shardings, and is unchanged if the loss is not finite;
      `optimizer_bytes` of each device; `collectives` of the program, lines of
      HLO, and `repeated`, the sources of those inside loops.
  """
  return run_on_eight(_COMPARE, options, counts, canvas, meshes)


def check_same(compared, report, tolerance):
  """Fails unless losses, gradients and updates are those of one device."""
  assert compared['metrics']['finite']
  for name in ('rpn_box', 'box', 'mask', 'learning_rate'):
    assert compared['metrics'][name] > 0, name
  differences = report['differences']
  # The momentum of the first step is the gradient.
  assert sum('trace' in name for name in differences) > 30
  assert sum('params' in name for name in differences) > 40
  wrong = {k: x for k, x in differences.items() if not x <= tolerance}
  assert not wrong
