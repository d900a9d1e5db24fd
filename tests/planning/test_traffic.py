"""Bytes that kernels read and write, by hand."""

from maskrcnn_jax.planning import program_text, traffic

# As the compiler for TPUs prints it: what is taken from arrays and written into
# them, alone and in kernels; prefetches, and their parts under one name.
TEXT = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%take (table: f32[100,8], rows: s32[5]) -> f32[5,8] {
  %table.1 = f32[100,8]{1,0} parameter(0)
  %rows.1 = s32[5]{0} parameter(1)
  %flat.1 = f32[100,8]{1,0} bitcast(%table.1)
  ROOT %gather.1 = f32[5,8]{1,0} gather(%flat.1, %rows.1), slice_sizes={1,8}
}

%nested (rows: s32[5], table: f32[100,8]) -> f32[5,8] {
  %rows.2 = s32[5]{0} parameter(0)
  %table.2 = f32[100,8]{1,0} parameter(1)
  ROOT %taken.2 = f32[5,8]{1,0} fusion(%table.2, %rows.2), kind=kCustom, calls=%take
}

%both (table: f32[100,8]) -> f32[4,8] {
  %table.3 = f32[100,8]{1,0} parameter(0)
  %slice.3 = f32[4,8]{1,0} slice(%table.3), slice={[0:4], [0:8]}
  %max.3 = f32[8]{0} reduce(%table.3), dimensions={0}, to_apply=%add
  ROOT %sum.3 = f32[4,8]{1,0} add(%slice.3, %max.3)
}

%write (table: f32[100,8], part: f32[4,8], at: s32[]) -> f32[100,8] {
  %table.4 = f32[100,8]{1,0} parameter(0)
  %part.4 = f32[4,8]{1,0} parameter(1)
  %at.4 = s32[] parameter(2)
  ROOT %written.4 = f32[100,8]{1,0} dynamic-update-slice(%table.4, %part.4, %at.4, %at.4)
}

%scatter (table: f32[100,8], rows: s32[5], added: f32[5,8]) -> f32[100,8] {
  %table.5 = f32[100,8]{1,0} parameter(0)
  %rows.5 = s32[5]{0} parameter(1)
  %added.5 = f32[5,8]{1,0} parameter(2)
  ROOT %scattered.5 = f32[100,8]{1,0} scatter(%table.5, %rows.5, %added.5), to_apply=%add
}

%scatter_into_zeros (rows: s32[5], added: f32[5,8], zero: f32[]) -> f32[100,8] {
  %rows.6 = s32[5]{0} parameter(0)
  %added.6 = f32[5,8]{1,0} parameter(1)
  %zero.6 = f32[] parameter(2)
  %zeros.6 = f32[100,8]{1,0} broadcast(%zero.6), dimensions={}
  ROOT %scattered.6 = f32[100,8]{1,0} fusion(%zeros.6, %rows.6, %added.6), kind=kCustom, calls=%scatter
}

ENTRY %main (table: f32[100,8], rows: s32[5], added: f32[5,8], part: f32[4,8], zero: f32[], at: s32[]) -> f32[100,8] {
  %table = f32[100,8]{1,0:T(8,128)} parameter(0)
  %rows = s32[5]{0} parameter(1)
  %added = f32[5,8]{1,0:T(8,128)} parameter(2)
  %part = f32[4,8]{1,0:T(4,128)S(1)} parameter(3)
  %zero = f32[] parameter(4)
  %at = s32[] parameter(5)
  %taken = f32[5,8]{1,0} fusion(%table, %rows), kind=kCustom, calls=%take
  %nested.1 = f32[5,8]{1,0} fusion(%rows, %table), kind=kLoop, calls=%nested
  %both.1 = f32[4,8]{1,0} fusion(%table), kind=kLoop, calls=%both
  %slice.1 = f32[4,8]{1,0} slice(%table), slice={[8:12], [0:8]}
  %written = f32[100,8]{1,0:T(8,128)} fusion(%table, %part, %at), kind=kLoop, calls=%write
  %scattered = f32[100,8]{1,0} fusion(%written, %rows, %added), kind=kCustom, calls=%scatter
  %into_zeros = f32[100,8]{1,0} fusion(%rows, %added, %zero), kind=kCustom, calls=%scatter_into_zeros
  %copy-start = (f32[100,8]{1,0:T(8,128)S(1)}, f32[100,8]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%table)
  %copy-done = f32[100,8]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %slice-start = ((f32[100,8]{1,0:T(8,128)}), f32[50,8]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%table), slice={[0:50], [0:8]}
  %slice-done = f32[50,8]{1,0:T(8,128)S(1)} slice-done(%slice-start)
  %joined = f32[100,8]{1,0:T(8,128)S(1)} custom-call(%slice-done, %slice-done), custom_call_target="ConcatBitcast"
  %back = f32[100,8]{1,0:T(8,128)} fusion(%joined), kind=kLoop, calls=%add
  ROOT %reduced = f32[100,8]{1,0:T(8,128)} all-reduce(%back), to_apply=%add
}
"""  # noqa: E501
TABLE, ROWS, ADDED, PART = 100 * 8 * 4, 5 * 4, 5 * 8 * 4, 4 * 8 * 4


def _bytes(text):
  entry, computations = program_text.read(text)
  return {
    kernel.instruction.name: (kernel.bytes, kernel.on_chip_bytes)
    for kernel in traffic.kernels(entry, computations)
  }


def test_bytes_of_kernels_by_hand():
  found = _bytes(TEXT)
  assert found == {
    'taken': (2 * ADDED + ROWS, 0),
    'nested.1': (2 * ADDED + ROWS, 0),
    'both.1': (TABLE + PART, 0),  # It also reads all of the table.
    'slice.1': (2 * PART, 0),
    'written': (PART + 4, PART),
    # Rows are read, added to and written.
    'scattered': (3 * ADDED + ROWS, 0),
    'into_zeros': (TABLE + ADDED + ROWS + 4, 0),
    'copy-start': (TABLE, TABLE),
    'slice-start': (TABLE // 2, TABLE // 2),
    'joined': (0, 0),
    'back': (TABLE, TABLE),
    'reduced': (2 * TABLE, 0),
  }
  assert traffic.accessed_bytes(TEXT) == sum(x for x, _ in found.values())


def test_bytes_of_loops_by_hand():
  text = """
%less (z: f32[6]) -> pred[] {
  %z = f32[6] parameter(0)
  ROOT %left = pred[] compare(%z, %z), direction=LT
}

%inner (x: f32[6]) -> f32[6] {
  %x = f32[6]{0} parameter(0)
  ROOT %negated = f32[6]{0} negate(%x)
}

%outer (y: f32[6]) -> f32[6] {
  %y = f32[6]{0} parameter(0)
  ROOT %while.2 = f32[6]{0} while(%y), condition=%less, body=%inner
}

ENTRY %main (p: f32[6]) -> f32[6] {
  %p = f32[6]{0} parameter(0)
  ROOT %while.1 = f32[6]{0} while(%p), condition=%less, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
}
"""  # noqa: E501
  # A round of the inner loop, of unknown length, compares and negates.
  comparison = 2 * 24 + 1
  assert traffic.accessed_bytes(text) == 5 * (comparison + comparison + 48)
