"""Times of one image in the runtimes of an export, measured in turns.

  python docs/deploy_speed.py EXPORTED --image=photo.jpg \
    [--torch=torchenv/bin/python --weights=weights.pth]

EXPORTED has the formats stablehlo and onnx with one canvas and any batch size.
Every runtime has a process of its own, on as many cores as it may use; no two
compute at the same time. `--torch` adds torchvision's `maskrcnn_resnet50_fpn`
with the weights that `export_weights` wrote, on the same canvas.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

RUNTIMES = ('jax', 'onnxruntime', 'openvino')


def main():
  add = (parser := argparse.ArgumentParser()).add_argument
  add('exported', type=pathlib.Path)
  add('--image', required=True)
  add('--torch')
  add('--weights')
  add('--rounds', type=int, default=9)
  add('--threads', type=int, nargs='+', default=[1, 2])
  add('--serve', nargs=2, help='name of a runtime, and number of threads')
  args = parser.parse_args()
  if args.serve:
    serve(args, args.serve[0], int(args.serve[1]))
    return
  print('| threads | runtime | ms, median | lowest | highest | CPU ms |')
  print('|---|---|---|---|---|---|')
  for threads in args.threads:
    measure(args, threads)


def measure(args, threads):
  """Prints the times of all runtimes with a number of threads."""
  names = [*RUNTIMES, 'torchvision'] if args.torch else RUNTIMES
  sides, rows = {}, {name: [] for name in names}
  for name in names:
    python = args.torch if name == 'torchvision' else sys.executable
    sides[name] = subprocess.Popen(
      [python, *sys.argv, '--serve', name, str(threads)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    sides[name].stdout.readline()  # It has warmed up.
  for _ in range(args.rounds):
    for name, side in sides.items():
      side.stdin.write('\n')
      side.stdin.flush()
      rows[name].append(json.loads(side.stdout.readline()))
  for name, side in sides.items():
    side.communicate()
    wall, used = ([1e3 * x for x in column] for column in zip(*rows[name]))
    middle, cpu = statistics.median(wall), statistics.median(used)
    print(
      f'| {threads} | {name} | {middle:.0f} | {min(wall):.0f} | '
      f'{max(wall):.0f} | {cpu:.0f} |',
      flush=True,
    )


def serve(args, name, threads):
  """Answers every line with the seconds and CPU seconds of a call."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
  call = globals()[f'start_{name}'](args, threads)
  for _ in range(3):
    call()
  print('ready', flush=True)
  for _ in sys.stdin:
    wall, used = time.perf_counter(), time.process_time()
    call()
    spent = time.perf_counter() - wall, time.process_time() - used
    print(json.dumps(spent), flush=True)


def inputs(args):
  """Name of the ONNX file and of the program; images and image_sizes."""
  import numpy as np
  from PIL import Image

  about = json.loads((args.exported / 'export.json').read_text())
  (entry,) = about['canvases']
  height, width = entry['canvas']
  image = Image.open(args.image).convert('RGB').resize((width, height))
  dtype = about['inputs']['images']['dtype']
  batch = np.asarray(image, dtype)[None], np.float32([[height, width]])
  return entry, dict(zip(('images', 'image_sizes'), batch))


def start_jax(args, threads):
  import jax
  import numpy as np
  from jax import export

  del threads  # As many as cores.
  jax.config.update('jax_platforms', 'cpu')
  entry, batch = inputs(args)
  data = bytearray((args.exported / entry['program']).read_bytes())
  weights = jax.device_put(dict(np.load(args.exported / 'weights.npz')))
  call = jax.jit(export.deserialize(data).call)
  return lambda: jax.block_until_ready(call(weights, *batch.values()))


def start_onnxruntime(args, threads):
  import onnxruntime

  entry, batch = inputs(args)
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = threads
  session = onnxruntime.InferenceSession(
    os.fspath(args.exported / entry['onnx']),
    options,
    providers=['CPUExecutionProvider'],
  )
  return lambda: session.run(None, batch)


def start_openvino(args, threads):
  import openvino

  entry, batch = inputs(args)
  settings = {
    'INFERENCE_NUM_THREADS': threads,
    'INFERENCE_PRECISION_HINT': 'f32',
  }
  path = os.fspath(args.exported / entry['onnx'])
  model = openvino.Core().compile_model(path, 'CPU', settings)
  return lambda: model(batch)


def start_torchvision(args, threads):
  import torch
  import torchvision

  torch.set_num_threads(threads)
  weights = torch.load(args.weights, weights_only=True)
  _, batch = inputs(args)
  pixels = torch.from_numpy(batch['images'][0].astype('float32') / 255)
  side = max(pixels.shape[:2])
  model = torchvision.models.detection.maskrcnn_resnet50_fpn(
    weights=None,
    weights_backbone=None,
    num_classes=len(weights['roi_heads.box_predictor.cls_score.bias']),
    min_size=min(pixels.shape[:2]),
    max_size=side,
  ).eval()
  model.load_state_dict(weights)
  image = pixels.permute(2, 0, 1).contiguous()

  def call():
    with torch.inference_mode():
      model([image])

  return call


if __name__ == '__main__':
  main()
