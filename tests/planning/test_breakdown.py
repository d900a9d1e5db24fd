"""Stages, bytes, operations and cycles of programs, by hand."""

import jax
import jax.numpy as jnp
import pytest

from maskrcnn_jax.planning import (
  breakdown,
  program_text,
  report,
  topologies,
  traffic,
)

# As the compiler for TPUs prints it: estimates of cycles for fusions alone, a
# prefetch, a copy without a name, a product in the form of a convolution.
TPU = """HloModule jit_train_step, is_scheduled=true

%conv (a: bf16[2,8,8,4], b: bf16[3,3,4,16]) -> bf16[2,8,8,16] {
  %a = bf16[2,8,8,4]{3,0,2,1:T(8,128)(2,1)} parameter(0)
  %b = bf16[3,3,4,16]{3,2,1,0} parameter(1)
  ROOT %convolution.1 = bf16[2,8,8,16]{3,0,2,1} convolution(%a, %b), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
}

%product (c: f32[4,32], d: f32[32,8]) -> f32[4,8] {
  %c = f32[4,32]{1,0} parameter(0)
  %d = f32[32,8]{1,0} parameter(1)
  %convolution.2 = f32[4,8]{1,0} convolution(%c, %d), dim_labels=bf_io->bf, metadata={op_name="jit(train_step)/transpose(jvp(MaskRCNN))/box_head/fc6/dot_general;jit(train_step)/transpose(jvp(MaskRCNN))/mask_head/add"}
  ROOT %copy.2 = f32[4,8]{0,1} copy(%convolution.2)
}

%body (x: f32[10]) -> f32[10] {
  %x = f32[10]{0} parameter(0)
  ROOT %fusion.3 = f32[10]{0} fusion(%x), kind=kLoop, calls=%round, metadata={op_name="jit(train_step)/jvp(MaskRCNN)/MaskRCNN.sample/MaskRCNN._propose/shard_map/while/body/and"}, backend_config={"estimated_cycles":"7"}
}

%is_left (y: f32[10]) -> pred[] {
  %y = f32[10]{0} parameter(0)
  ROOT %constant.1 = pred[] constant(true)
}

ENTRY %main.1 (images: bf16[2,8,8,4], kernel: bf16[3,3,4,16], scores: f32[10], weights: f32[32,8]) -> (f32[10], f32[4,8]) {
  %images = bf16[2,8,8,4]{3,2,1,0} parameter(0)
  %kernel = bf16[3,3,4,16]{3,2,1,0} parameter(1)
  %scores = f32[10]{0} parameter(2)
  %weights = f32[32,8]{1,0} parameter(3)
  %copy-start.1 = (bf16[3,3,4,16]{3,2,1,0:T(8,128)(2,1)S(1)}, bf16[3,3,4,16]{3,2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%kernel)
  %copy.1 = bf16[2,8,8,4]{3,0,2,1} copy(%images)
  %copy-done.1 = bf16[3,3,4,16]{3,2,1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start.1)
  %fusion.1 = bf16[2,8,8,16]{3,0,2,1} fusion(%copy.1, %copy-done.1), kind=kOutput, calls=%conv, metadata={op_name="jit(train_step)/jvp(MaskRCNN)/MaskRCNN.pyramid/backbone/stage2/block1/conv2/conv_general_dilated"}, backend_config={"flag_configs":[],"estimated_cycles":"1000"}
  %gather.1 = f32[4,32]{1,0} gather(%fusion.1, %scores), metadata={op_name="jit(train_step)/jvp(MaskRCNN)/MaskRCNN.align/align7/vmap()/gather"}
  %while.1 = f32[10]{0} while(%scores), condition=%is_left, body=%body, metadata={op_name="jit(train_step)/jvp(MaskRCNN)/MaskRCNN.sample/MaskRCNN._propose/shard_map/while"}, backend_config={"known_trip_count":{"n":"5"}}
  %fusion.2 = f32[4,8]{1,0} fusion(%gather.1, %weights), kind=kOutput, calls=%product, backend_config={"estimated_cycles":"300"}
  %copy.3 = f32[4,8]{0,1} copy(%fusion.2)
  ROOT %tuple.1 = (f32[10]{0}, f32[4,8]{1,0}) tuple(%while.1, %copy.3)
}
"""  # noqa: E501

# As the compiler for GPUs prints it: products are calls of libraries, which
# return a workspace too; kernels of parameters have the parameter's name.
GPU = """HloModule jit_train_step, is_scheduled=true

ENTRY %main.2 (x: f32[2,8,8,4], kernel: f32[16,3,3,4], out: f32[2,4,4,16], w: f32[32,8]) -> (f32[16,3,3,4], f32[2,8,8,4], f32[8]) {
  %x = f32[2,8,8,4]{3,2,1,0} parameter(0)
  %kernel = f32[16,3,3,4]{3,2,1,0} parameter(1)
  %out = f32[2,4,4,16]{3,2,1,0} parameter(2)
  %w = f32[32,8]{1,0} parameter(3)
  %conv.1 = (f32[2,4,4,16]{3,2,1,0}, u8[0]{0}) custom-call(%x, %kernel), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(train_step)/jvp(MaskRCNN)/MaskRCNN.pyramid/fpn/lateral2/conv"}
  %conv.2 = (f32[16,3,3,4]{3,2,1,0}, u8[0]{0}) custom-call(%x, %out), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter", metadata={op_name="jit(train_step)/transpose(jvp(MaskRCNN))/MaskRCNN.pyramid/fpn/lateral2/conv"}
  %conv.3 = (f32[2,8,8,4]{3,2,1,0}, u8[0]{0}) custom-call(%out, %kernel), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput", metadata={op_name="jit(train_step)/transpose(jvp(MaskRCNN))/MaskRCNN.pyramid/fpn/lateral2/conv"}
  %transposed.1 = f32[32,8]{0,1} fusion(%w), kind=kInput, calls=%t, metadata={op_name="state.params[\\'box_head\\'][\\'fc6\\'][\\'kernel\\']"}
  %get-tuple-element.1 = f32[16,3,3,4]{3,2,1,0} get-tuple-element(%conv.2), index=0
  %get-tuple-element.2 = f32[2,8,8,4]{3,2,1,0} get-tuple-element(%conv.3), index=0
  %bitcast.1 = f32[32,8]{1,0} bitcast(%transposed.1)
  %matmul.1 = (f32[8,8]{1,0}, s8[64]{0}) custom-call(%bitcast.1, %w), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(train_step)/jvp(MaskRCNN)/box_head/fc6/dot_general"}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["0"],"rhs_contracting_dimensions":["0"]}}}
  %get-tuple-element.3 = f32[8,8]{1,0} get-tuple-element(%matmul.1), index=0
  %all-reduce-start.1 = f32[8,8]{1,0} all-reduce-start(%get-tuple-element.3), to_apply=%add, metadata={op_name="jit(train_step)/transpose(jvp(MaskRCNN))/rpn_head/conv/dot"}
  %all-reduce-done.1 = f32[8,8]{1,0} all-reduce-done(%all-reduce-start.1)
  %momentum.1 = f32[8]{0} fusion(%all-reduce-done.1), kind=kLoop, calls=%m, metadata={op_name="state.opt_state.inner_states[\\'train\\'].inner_state[0].trace[\\'fpn\\'][\\'lateral2\\']"}
  ROOT %tuple.2 = (f32[16,3,3,4]{3,2,1,0}, f32[2,8,8,4]{3,2,1,0}, f32[8]{0}) tuple(%get-tuple-element.1, %get-tuple-element.2, %momentum.1)
}
"""  # noqa: E501

# As the compiler for CPUs prints it: fusions are called in parallel.
CPU = """HloModule jit_train_step, is_scheduled=true

%parallel (a: f32[6,4]) -> f32[6,4] {
  %a = f32[6,4]{1,0} parameter(0)
  ROOT %fusion.1 = f32[6,4]{1,0} fusion(%a), kind=kLoop, calls=%f, metadata={op_name="jit(train_step)/jvp(mask_loss)/log1p"}
}

ENTRY %main.3 (p: f32[6,4], q: f32[3,4]) -> f32[6,3] {
  %p = f32[6,4]{1,0} parameter(0)
  %q = f32[3,4]{1,0} parameter(1)
  %call.1 = f32[6,4]{1,0} call(%p), to_apply=%parallel, metadata={op_name="jit(train_step)/jvp(mask_loss)/log1p"}
  ROOT %dot.1 = f32[6,3]{1,0} dot(%call.1, %q), lhs_contracting_dims={1}, rhs_contracting_dims={1}, metadata={op_name="jit(train_step)/optimizer/dot_general"}
}
"""  # noqa: E501


def _rows(text, chip=None):
  found = breakdown.breakdown(text, chip)
  total = sum(row['bytes'] for row in found['stages'])
  assert total == traffic.accessed_bytes(text)
  return {(x['stage'], x['pass']): x for x in found['stages']}


def test_stages_of_a_program_for_tpus_by_hand():
  rows = _rows(TPU, topologies.CHIPS['v5e'])
  images, kernel, features = 2 * 8 * 8 * 4 * 2, 3 * 3 * 4 * 16 * 2, 2 * 64 * 32
  # Each pair of output and kernel positions inside the image: 22 along an axis.
  flops = 2 * (2 * 4 * 16) * 22 * 22
  stage2 = rows['backbone stage2', 'forward']
  # With the copies that it is the first to read: images in another layout, and
  # the kernel, which is prefetched to the chip.
  assert stage2['bytes'] == 3 * images + kernel + features
  assert stage2['on_chip_bytes'] == 2 * kernel
  # The copies do not hide that it reads images and kernel.
  assert stage2['least_bytes'] == images + kernel + features
  assert (stage2['flops'], stage2['cycles']) == (flops, 1000)
  assert (stage2['kernels'], stage2['without_cycles']) == (3, 2)
  copies = rows['copies without a name', '']
  assert (copies['bytes'], copies['least_bytes']) == (2 * 4 * 4 * 8, 0)
  assert (copies['kernels'], copies['without_cycles']) == (1, 1)
  proposals = rows['proposals', 'forward']
  assert (proposals['kernels'], proposals['bytes']) == (5, 5 * 80)
  assert (proposals['cycles'], proposals['least_bytes']) == (35, 80)
  align = rows['RoIAlign 7x7', 'forward']
  assert (align['without_cycles'], align['cycles']) == (1, 0)
  # The rows that it gathers, not all features.
  assert align['bytes'] == 2 * 4 * 32 * 4 + 10 * 4 == align['least_bytes']
  # The name of what is inside counts, the first of two.
  box_head = rows['box head', 'backward']
  assert box_head['flops'] == 2 * 4 * 32 * 8
  assert box_head['least_bytes'] == 4 * (4 * 32 + 32 * 8 + 4 * 8)
  assert list(rows) == [
    ('backbone stage2', 'forward'),
    ('proposals', 'forward'),
    ('RoIAlign 7x7', 'forward'),
    ('box head', 'backward'),
    ('copies without a name', ''),
  ]


def test_times_are_those_of_the_chip():
  chip = topologies.CHIPS['v5e']
  for row in _rows(TPU, chip).values():
    compute = row['flops'] / 197e12
    assert row['seconds'] == max(compute, row['bytes'] / 819e9)
    assert row['floor_seconds'] == max(compute, row['least_bytes'] / 819e9)
    assert row['gap_seconds'] == row['seconds'] - row['floor_seconds'] >= 0
  assert _rows(TPU)['RoIAlign 7x7', 'forward']['seconds'] is None


def test_stages_of_a_program_for_gpus_by_hand():
  rows = _rows(GPU)
  x, kernel, out = 2 * 8 * 8 * 4 * 4, 16 * 3 * 3 * 4 * 4, 2 * 4 * 4 * 16 * 4
  # 4 outputs of 3 taps along an axis, of which the first lacks one.
  flops = 2 * (2 * 4 * 16) * 11 * 11
  forward, backward = rows['FPN', 'forward'], rows['FPN', 'backward']
  assert (forward['flops'], backward['flops']) == (flops, 2 * flops)
  assert forward['bytes'] == x + kernel + out
  assert backward['bytes'] == 2 * (x + kernel + out)
  # Gradients leave, and the forward pass's own arrays are read once each.
  assert backward['least_bytes'] == 2 * x + 2 * kernel + out
  head = rows['box head', 'forward']
  assert head['flops'] == 2 * 8 * 8 * 32
  assert rows['box head', '']['bytes'] == 2 * 32 * 8 * 4
  assert rows['collectives', '']['kernels'] == 1
  assert rows['optimizer', '']['bytes'] == 4 * (8 * 8 + 8)
  assert {row['cycles'] for row in rows.values()} == {None}


def test_stages_of_a_program_for_cpus_by_hand():
  rows = _rows(CPU)
  loss = rows['mask loss', 'forward']
  assert (loss['kernels'], loss['bytes']) == (1, 2 * 6 * 4 * 4)
  assert loss['least_bytes'] == 2 * 6 * 4 * 4
  optimizer = rows['optimizer', '']
  assert optimizer['flops'] == 2 * 6 * 3 * 4
  assert optimizer['least_bytes'] == 4 * (6 * 4 + 3 * 4 + 6 * 3)


def test_instructions_are_counted():
  counts = breakdown.breakdown(TPU)['instructions']
  found = {kind: n for kind, n in counts.items() if n}
  assert found == {
    'fusion': 3,
    'copy': 3,
    'copy-start': 1,
    'gather': 1,
    'while': 1,
    'kernels': 11,
  }
  assert breakdown.breakdown(GPU)['instructions']['all-reduce'] == 1


@pytest.mark.parametrize(
  'source, stage',
  [
    ('jit(train_step)/jvp(MaskRCNN)/MaskRCNN.pyramid/sub', 'images'),
    ('jvp(MaskRCNN)/MaskRCNN.pyramid/backbone/stem/conv', 'backbone stem'),
    ('jvp(MaskRCNN)/MaskRCNN.pyramid/backbone/stem_norm', 'backbone stem'),
    ('MaskRCNN.pyramid/backbone/norm5/mul', 'backbone stage5'),
    ('MaskRCNN.pyramid/backbone/patch/dot', 'backbone stem'),
    ('MaskRCNN.pyramid/backbone/reduce_window_max', 'backbone stem'),
    ('MaskRCNN.pyramid/backbone/block12/attn/dot', 'backbone blocks'),
    ('MaskRCNN.sample/MaskRCNN._propose/shard_map/top_k', 'proposals'),
    ('jvp(MaskRCNN)/MaskRCNN.sample/shard_map/sort', 'sampling'),
    ('MaskRCNN.detect/MaskRCNN.align/align14/gather', 'RoIAlign 14x14'),
    ('jvp(MaskRCNN)/MaskRCNN.align_both/align_table/pad', 'RoIAlign table'),
    ('MaskRCNN.detect/shard_map/vmap()/while', 'detections'),
    ('jit(train_step)/transpose(jvp(rpn_losses))/mul', 'RPN losses'),
    ('jit(train_step)/optimizer/jit(_where)/select_n', 'optimizer'),
    ("batch['images']", 'images'),
    ('jit(train_step)/add', 'other scopes'),
  ],
)
def test_stage_of_a_scope(source, stage):
  line = f'%x = f32[] fusion(%y), metadata={{op_name="{source}"}}'
  instruction = program_text.Instruction('x', 'fusion', '', [], line)
  found = breakdown.stage_of(instruction, {})
  direction = 'backward' if 'transpose' in source else 'forward'
  assert found == (stage, direction if 'jvp' in source else '')


@pytest.mark.parametrize(
  'sizes, options',
  [
    (((2, 9, 8, 4), (3, 3, 4, 6)), {'window_strides': (2, 1)}),
    (((1, 7, 7, 6), (3, 3, 1, 6)), {'feature_group_count': 6}),
    (((1, 5, 6, 3), (2, 3, 3, 4)), {'lhs_dilation': (2, 2)}),
    (((1, 9, 9, 3), (3, 3, 3, 4)), {'rhs_dilation': (2, 3)}),
  ],
)
def test_operations_of_convolutions_are_the_compilers(sizes, options):
  options = {'window_strides': (1, 1), 'padding': ((1, 2), (0, 1)), **options}

  def convolve(x, kernel):
    numbers = 'NHWC', 'HWIO', 'NHWC'
    return jax.lax.conv_general_dilated(
      x, kernel, dimension_numbers=numbers, **options
    )

  lowered = jax.jit(convolve).lower(*map(jnp.zeros, sizes))
  rows = breakdown.breakdown(lowered.compile().as_text())['stages']
  defined = lowered.cost_analysis()['flops']
  assert sum(row['flops'] for row in rows) == defined > 0


def test_tables():
  found = breakdown.breakdown(TPU, topologies.CHIPS['v5e'])
  row = {'topology': 'v5e:1x1', 'batch_per_device': 2, 'breakdown': found}
  shown = report.breakdown_text(row)
  lines = [line.split('|')[1:-1] for line in shown.splitlines() if '|' in line]
  named = {line[0].strip(): [x.strip() for x in line[1:]] for line in lines}
  assert named['backbone stage2'][:2] == ['forward', '3']
  assert named['all'][1] == '11'
  total = sum(stage['bytes'] for stage in found['stages']) / 1e9
  assert float(named['all'][2]) == pytest.approx(total, rel=0.01)
  assert report.breakdown_text({**row, 'breakdown': None}) == ''
