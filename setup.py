"""Packaging: `pip install .` gives the package and the `maskrcnn-jax` command.

`MASKRCNN_JAX_INSTALL=predict pip install .` gives them for predictions, weights
and exports alone, without TensorFlow.

`configs/` ships inside the wheel as `maskrcnn_jax/configs`; every other folder
of the checkout stays out, so the wheel has one top-level name.
"""

import os
import pathlib

import setuptools

README = pathlib.Path(__file__).parent / 'README.md'

# Lower bounds are what launch/README.md says was installed and tested; upper
# bounds stop before the next release that may change an interface in use.
# All that predictions, weights and exports need.
PREDICTION = [
  'absl-py>=2.1,<3',  # tensorflow-datasets and ml-collections log through it.
  'flatbuffers>=24.3.25,<26',  # jax.export writes with it; so has TensorFlow.
  'flax>=0.12,<0.13',  # Linen; the first series made for jax 0.8.
  'jax>=0.8,<0.13',  # jax.shard_map and keys as they are used; 3.11 has 0.10.
  'ml-collections>=1.0,<2',  # ConfigDict.
  'ml-dtypes>=0.4,<1',  # bfloat16 for NumPy; jax needs it too.
  'numpy>=2.0,<3',  # jax 0.8 needs 2.0.
  'optax>=0.2.5,<0.3',  # Losses and update rules; 0.2.5 knows jax 0.8.
  'orbax-checkpoint>=0.11.25,<0.13',  # Checkpoints of the asynchronous kind.
  'pillow>=11,<14',  # Decodes images, draws masks; 11 has wheels for 3.13.
  'pooch>=1.8,<2',  # Downloads of weights with checksums; brings requests.
  'pyyaml>=6.0,<7',  # Habana's params.yaml.
  'pycocotools>=2.0.8,<3',  # RLE and COCOeval; 2.0.8 is the first for NumPy 2.
  'scipy>=1.14,<2',  # Matches tracks and objects; jax 0.8 needs it too.
  'safetensors>=0.4.3,<1',  # Weights of others; 0.4.3 is for NumPy 2 as well.
  'tqdm>=4.66,<5',  # Progress bars.
]
# TensorFlow has no wheels for Python 3.14 yet.
_HAS_TENSORFLOW = 'python_version < "3.14"'
# What reading records, training and its charts need too.
TRAINING = [
  'matplotlib>=3.9,<4',  # Draws charts; 3.9 is the first built for NumPy 2.
  'tensorboardX>=2.6.2.2,<3',  # Event files without TensorFlow.
  # Builders in data/; reads prepared sets. Of no use without TensorFlow.
  f'tensorflow-datasets>=4.9.7,<5; {_HAS_TENSORFLOW}',
  # tf.data reads the records; nothing of it runs on an accelerator. 2.20 is the
  # first with wheels for Python 3.13, and takes the protobuf that others need.
  'tensorflow-cpu>=2.20,<3; sys_platform == "linux"'
  f' and platform_machine == "x86_64" and {_HAS_TENSORFLOW}',
  'tensorflow>=2.20,<3; (sys_platform != "linux"'
  f' or platform_machine != "x86_64") and {_HAS_TENSORFLOW}',
]
# `MASKRCNN_JAX_INSTALL=predict pip install .` leaves the latter out. An extra
# can only add, and after --no-deps `pip check` would report them for ever.
INSTALLS = {'all': [*PREDICTION, *TRAINING], 'predict': PREDICTION}
_install = os.environ.get('MASKRCNN_JAX_INSTALL', 'all')
if _install not in INSTALLS:
  raise SystemExit(f'MASKRCNN_JAX_INSTALL must be all or predict: {_install}')
# To write ONNX files, and to run them before they are given away.
ONNX = [
  'onnx>=1.17,<2',  # Beyond opset 21; tried: 1.23.
  'onnxruntime>=1.20,<2',  # Opset 21, and wheels for Python 3.13; tried: 1.32.
]
HOTCOCO = 'hotcoco>=1.3,<2'  # Its numbers were compared with pycocotools'.
AV = 'av>=18,<20'  # Videos; one wheel for all versions of Python. Tried: 18.1.
EXTRAS = {
  'test': [
    AV,
    HOTCOCO,
    *ONNX,
    'hypothesis>=6.100,<7',  # Properties of order and round trips.
    'ipykernel>=6.29,<8',  # The process that the notebook runs in.
    'nbclient>=0.10,<0.12',  # Runs the notebook; brings nbformat.
    'openvino>=2025.4,<2027',  # Runs ONNX files as well; tried: 2026.4.
    'psutil>=5.9,<8',  # Finds the processes to kill.
    'pytest>=8,<10',
    'pytest-xdist>=3.8,<4',  # Files side by side: a test rarely fills a core.
    'ruff==0.17.*',  # Formatting may change between series.
    'setuptools>=77',  # Builds the wheel that the packaging test looks into.
  ],
  'notebook': ['jupyterlab>=4,<5'],
  'train': TRAINING,  # Completes an installation for predictions.
  'hotcoco': [HOTCOCO],  # Scores COCO results faster: evaluation.scorer.
  'video': [AV],  # `predict --images clip.mp4`, `--track`.
  'onnx': ONNX,  # `export --format=onnx`.
  'cuda': ['jax[cuda12]>=0.8,<0.13'],
  'tpu': ['jax[tpu]>=0.8,<0.13'],  # On any machine also `plan` for TPUs.
  # The compiler for GPUs and ptxas, without the libraries that run programs.
  # The plugin's version must be that of jaxlib.
  'plan-gpu': [
    'jax-cuda12-plugin>=0.8,<0.13',
    'nvidia-cuda-nvcc-cu12>=12.6,<13',
  ],
}

setuptools.setup(
  name='maskrcnn-jax',
  version='0.1.0',
  description='Mask R-CNN in JAX and Flax',
  long_description=README.read_text() if README.exists() else '',
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11,<3.15',
  packages=[
    *setuptools.find_packages(include=['maskrcnn_jax*']),
    'maskrcnn_jax.configs',
  ],
  package_dir={'maskrcnn_jax.configs': 'configs'},
  package_data={
    'maskrcnn_jax.datasets.doctor': ['page.html'],
    'maskrcnn_jax.inference': ['browse.html'],
  },
  install_requires=INSTALLS[_install],
  extras_require=EXTRAS,
  entry_points={
    'console_scripts': ['maskrcnn-jax = maskrcnn_jax.cli.main:main']
  },
)
