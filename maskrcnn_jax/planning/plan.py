"""Ahead-of-time compilation of training or detection for other topologies.

The compiler reports what the program needs of each device: memory, operations,
bytes, and the data that devices exchange. Nothing runs and no array is made.
"""

import functools
import json
import logging
import pathlib
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from maskrcnn_jax import config as config_lib
from maskrcnn_jax import files, input_pipeline
from maskrcnn_jax.errors import invalid
from maskrcnn_jax.planning import (
  breakdown,
  chips,
  program_text,
  programs,
  report,
  topologies,
  traffic,
)

# As in `Used 21.57G of 15.75G hbm`.
_USED = re.compile(r'Used ([\d.]+)([KMGT]?)i?B? of ([\d.]+)([KMGT]?)i?B? hbm')
LARGEST = 'largest'
# Part of a GPU's memory that a step may need: the rest is for CUDA's context,
# workspaces of cuDNN, which are chosen on the GPU, and fragmentation.
USABLE = 0.9
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


def plan(
  config,
  names: Sequence[str],
  batches_per_device: Sequence[int] | str | None = None,
  output: str | None = None,
  rate_is_given: bool = False,
  what: str = 'step',
  has_breakdown: bool = False,
) -> list[dict[str, Any]]:
  """Requirements of a step by topology and batch size; printed and written.

  Args:
    config: a ConfigDict with the sections `model, input, optimizer`.
    names: topologies, see `topologies.KNOWN`.
    batches_per_device: images; `LARGEST`: those of `search_largest`; None: the
      config's batch divided by the devices of a topology, at least 1.
    output: new folder of `plan.json` and `plan.png`; None writes neither.
    rate_is_given: whether the learning rate stays, whatever the batch is.
    what: of `programs.TRACED`.
    has_breakdown: whether the work of each program is divided by stage.

  Returns:
    A row for each, see `plan_step`.

  Raises:
    UserError: a topology or batch is not possible, the compiler for a topology
      is not installed, or the folder is not empty.
  """
  if output:
    files.check_new_folder(output)
  is_search = batches_per_device == LARGEST
  if not is_search and min(batches_per_device or [1]) < 1:
    raise invalid('batch_per_device', batches_per_device, 'at least 1')
  num_devices = config.get('runtime', {}).get('num_devices')
  found = [topologies.find(name, num_devices) for name in names]
  if is_search and any(topology.chip is None for topology in found):
    wanted = 'numbers, where the memory of a device is not known'
    raise invalid('batch_per_device', LARGEST, wanted)
  rows = []

  def add(topology, batch):
    logging.info('compiling for %s, %d images a device', topology.name, batch)
    options = rate_is_given, what, has_breakdown
    rows.append(plan_step(config, topology, batch, *options))
    if output:
      # Written at once: the next one may take minutes.
      text = json.dumps(rows, indent=2) + '\n'
      files.write_text(pathlib.Path(output, 'plan.json'), text)
    return rows[-1]['memory']

  for topology in found:
    if is_search:
      search_largest(functools.partial(add, topology))
      continue
    default = max(1, config.input.batch_size // len(topology.devices))
    for batch in batches_per_device or [default]:
      add(topology, batch)
  print(report.text(rows))
  if output:
    report.draw(rows, pathlib.Path(output, 'plan.png'))
    logging.info('wrote plan.json and plan.png to %s', output)
  return rows


def search_largest(memory_of: Callable[[int], dict[str, Any]]) -> int:
  """The largest batch of a device that fits; 0 if one image does not.

  Memory grows nearly in proportion, so that a line through two batches names
  the next one to try: four or five compilations in all.

  Args:
    memory_of: compiles for a number of images and returns its `memory`, see
      `plan_step`.
  """
  needed, least, most = {}, 0, None
  guess = 1
  while most is None or most > least + 1:
    memory = memory_of(guess)
    needed[guess] = memory['needed']
    least, most = (guess, most) if memory['fits'] else (least, guess)
    if len(needed) == 1:
      guess = 2
      continue
    near = sorted(needed, key=lambda batch: abs(batch - least))[:2]
    (low, a), (high, b) = sorted((batch, needed[batch]) for batch in near)
    slope = max((b - a) / (high - low), 1.0)
    guess = low + int((memory['usable'] - a) / slope)
    guess = max(guess, least + 1)
    guess = guess if most is None else min(guess, most - 1)
  return least


def plan_step(
  config,
  topology: topologies.Topology,
  batch_per_device: int,
  rate_is_given: bool = False,
  what: str = 'step',
  has_breakdown: bool = False,
) -> dict[str, Any]:
  """Requirements of one step or detection; see `plan` for the arguments.

  Returns:
    A row of JSON values. Bytes and operations are of one device and one step
    unless the name says otherwise. `memory` is that of `program_text.memory`
    with `capacity` of the device, the `usable` part of it, and `fits`. Where
    the step does not fit, what only a compiled program has is None. `breakdown`
    is that of `breakdown.breakdown`, None without `has_breakdown`.
  """
  num_devices = len(topology.devices)
  batch_size = batch_per_device * num_devices
  canvas = max(config.input.canvases, key=lambda sides: sides[0] * sides[1])
  shared = ('max_instances', 'mask_size', 'image_dtype')
  options = {k: config.input[k] for k in shared if k in config.input}

  def make_spec(rows):
    spec = input_pipeline.batch_spec(tuple(canvas), rows, **options)
    return {k: spec[k] for k in programs.INPUTS.get(what, spec)}

  spec = make_spec(batch_size)
  row = {
    'topology': topology.name,
    'what': what,
    'devices': num_devices,
    'hosts': topology.num_hosts,
    'device_kind': topology.devices[0].device_kind,
    'canvas': list(canvas),
    'dtype': config.model.get('dtype', 'float32'),
    'batch_per_device': batch_per_device,
    'batch_size': batch_size,
    'learning_rate': None,
  }
  if what == 'step':
    ratio = config_lib.linear_ratio(config, batch_size)
    rate = config.optimizer.learning_rate
    row['learning_rate'] = rate * (1.0 if rate_is_given else ratio)
  trace = programs.TRACED[what]
  flops = None
  if topology.devices[0].platform != 'tpu':
    flops = programs.defined_flops(trace, config, make_spec(batch_per_device))
  lowered = trace(config, spec, topology).lower()
  options = flops, has_breakdown
  row |= compile_step(lowered, topology, batch_per_device, *options)
  return row | {'input': _input(spec, row)}


def compile_step(
  lowered,
  topology: topologies.Topology,
  batch_per_device: int,
  flops: float | None = None,
  has_breakdown: bool = False,
) -> dict[str, Any]:
  """The fields of `plan_step` that depend on the program.

  Args:
    lowered: of a function of `programs.TRACED`.
    topology: that it was traced for.
    batch_per_device: images.
    flops: of one device, where the compiler does not report all.
    has_breakdown: see `plan_step`.
  """
  chip = topology.chip
  capacity = int(chip.memory / chip.devices) if chip else None
  limits = {'capacity': capacity, 'usable': capacity}
  if isinstance(chip, chips.Gpu):
    limits['usable'] = int(USABLE * capacity)
  start = time.monotonic()
  try:
    compiled = lowered.compile(topology.compiler_options)
  except jax.errors.JaxRuntimeError as error:
    needed = needed_memory(str(error))
    if needed is None:
      raise
    return {
      'memory': {'needed': needed, **limits, 'fits': False},
      'compile_seconds': time.monotonic() - start,
      **dict.fromkeys(('flops', 'bytes_accessed', 'collectives', 'breakdown')),
      'time': None,
    }
  seconds = time.monotonic() - start
  text = compiled.as_text()
  costs = compiled.cost_analysis() or {}
  if flops is not None:
    costs['flops'] = flops
  memory = program_text.memory(compiled)
  fits = capacity is None or memory['needed'] <= limits['usable']
  found = program_text.find_collectives(text)
  values = {
    'memory': memory | limits | {'fits': fits},
    'flops': costs.get('flops'),
    'flops_per_image': costs.get('flops', 0) / batch_per_device or None,
    'bytes_accessed': traffic.accessed_bytes(text),
    'collectives': program_text.summary(found),
    'breakdown': breakdown.breakdown(text, chip) if has_breakdown else None,
    'compile_seconds': seconds,
  }
  return values | {'time': _time(values, costs, topology, batch_per_device)}


def needed_memory(message: str) -> int | None:
  """Bytes that a step would need, from an error of the compiler, or None."""
  used = _USED.search(message)
  if 'RESOURCE_EXHAUSTED' not in message or used is None:
    return None
  return int(float(used[1]) * _UNITS[used[2]])


def _time(values, costs, topology, batch_per_device) -> dict[str, Any] | None:
  """An estimate of the step's seconds: the compiler's, else a roofline.

  The roofline is the longest of three times, each as if the others were hidden
  behind it: products at the published peak, bytes at the published bandwidth
  of the memory, and rings of all devices for the data that they exchange.
  """
  chip, num_devices = topology.chip, len(topology.devices)
  # The compiler of TPUs adds up -1 for operations that it has no model of.
  optimal = costs.get('optimal_seconds', 0)
  times = {}
  if chip:
    sent = program_text.sent_bytes(values['collectives'], num_devices)
    times = {
      'compute': (values['flops'] or 0) / chip.flops,
      'memory': (values['bytes_accessed'] or 0) / chip.memory_bandwidth,
      'network': sent / _link_bandwidth(topology),
    }
    times = {name: x * chip.devices for name, x in times.items()}
  if optimal > 0:
    seconds, source = optimal, 'compiler'
  elif times:
    seconds, source = max(times.values()), 'roofline'
  else:
    return None
  return times | {
    'step_seconds': seconds,
    'source': source,
    'images_per_second': batch_per_device * num_devices / seconds,
  }


def _link_bandwidth(topology):
  """Bytes per second that leave a chip along the slowest part of the ring."""
  is_gpu = isinstance(topology.chip, chips.Gpu)
  if is_gpu and topology.num_hosts > 1:
    return topology.chip.host_bandwidth
  return topology.chip.link_bandwidth


def _input(spec, row) -> dict[str, Any]:
  """Throughput that the input pipeline of every host must deliver."""
  num_bytes = sum(
    x.dtype.size * x.shape.num_elements() for x in jax.tree.leaves(spec)
  )
  values = {'bytes_per_image': num_bytes // row['batch_size']}
  if row['time']:
    rate = row['time']['images_per_second'] / row['hosts']
    values['images_per_second_per_host'] = rate
    values['bytes_per_second_per_host'] = rate * values['bytes_per_image']
  return values
