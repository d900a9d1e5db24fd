"""ONNX models run by the runtimes that are installed."""

import pytest

RUNTIMES = ('onnxruntime', 'openvino')


def run(model, inputs, runtime):
  """Outputs by name; the test is skipped where the runtime is missing.

  Args:
    model: ModelProto.
    inputs: arrays by name.
    runtime: of `RUNTIMES`.
  """
  reason = f"{runtime} is not installed: pip install '.[test]'"
  module = pytest.importorskip(runtime, reason=reason)
  data = model.SerializeToString()
  if runtime == 'onnxruntime':
    options = module.SessionOptions()
    options.intra_op_num_threads = 1
    session = module.InferenceSession(
      data, options, providers=['CPUExecutionProvider']
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs)))
  core = module.Core()
  compiled = core.compile_model(
    core.read_model(data),
    'CPU',
    # Otherwise bfloat16 where the processor has it.
    {'INFERENCE_NUM_THREADS': 1, 'INFERENCE_PRECISION_HINT': 'f32'},
  )
  names = [output.name for output in model.graph.output]
  found = compiled(inputs)
  return {name: found[compiled.output(name)] for name in names}
