"""Published figures of accelerators, and descriptions for their compilers."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published figures of a TPU chip.

  Attributes:
    name: of its descriptions in the compiler.
    kind: `device_kind` of its devices in JAX.
    axes: of the torus or mesh that chips form.
    max_chips: of the largest slice.
    devices: of JAX per chip; each has its share of what follows.
    flops: per second, in bfloat16.
    memory: bytes of HBM.
    memory_bandwidth: bytes per second.
    link_bandwidth: bytes per second that leave a chip over all its links.
    options: of the description.
  """

  name: str
  kind: str
  axes: int
  max_chips: int
  devices: int
  flops: float
  memory: float
  memory_bandwidth: float
  link_bandwidth: float
  options: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Gpu:
  """Published figures of a GPU.

  Attributes:
    kind: its name in CUDA, `device_kind` in JAX.
    capability: compute capability, (major, minor).
    cores: streaming multiprocessors.
    units: float32 units of a core.
    threads: that a core keeps at once.
    shared_memory: bytes of a core.
    l2_cache: bytes.
    clock: boost, in GHz.
    memory: bytes that CUDA reports.
    memory_bandwidth: bytes per second.
    flops: per second, of dense products in bfloat16 summed in float32.
    link_bandwidth: bytes per second that leave it, to others of its host.
    host_bandwidth: bytes per second that leave it, to other hosts.
  """

  kind: str
  capability: tuple[int, int]
  cores: int
  units: int
  threads: int
  shared_memory: int
  l2_cache: int
  clock: float
  memory: int
  memory_bandwidth: float
  flops: float
  link_bandwidth: float
  host_bandwidth: float
  devices = 1

  @property
  def target(self) -> str:
    """The description that XLA takes, a `GpuTargetConfigProto` as text."""
    major, minor = self.capability
    return f"""
      gpu_device_info {{
        threads_per_block_limit: 1024
        threads_per_warp: 32
        shared_memory_per_block: 49152
        shared_memory_per_core: {self.shared_memory}
        shared_memory_per_block_optin: {self.shared_memory - 1024}
        threads_per_core_limit: {self.threads}
        core_count: {self.cores}
        fpus_per_core: {self.units}
        block_dim_limit_x: 2147483647
        block_dim_limit_y: 65535
        block_dim_limit_z: 65535
        memory_bandwidth: {int(self.memory_bandwidth)}
        l2_cache_size: {self.l2_cache}
        clock_rate_ghz: {self.clock}
        device_memory_size: {self.memory}
        cuda_compute_capability {{ major: {major} minor: {minor} }}
        registers_per_core_limit: 65536
        registers_per_block_limit: 65536
      }}
      platform_name: "CUDA"
      dnn_version_info {{ major: 9 minor: 10 }}
      runtime_version {{ major: 12 minor: 8 }}
      device_description_str: "{self.kind}"
    """


# Google's pages on TPU v4, v5e, v5p, v6e and TPU7x (docs.cloud.google.com/tpu).
# Their figures of links count both directions, or are in bits. Two devices of
# TPU v4 and v5p act as one, those of TPU7x do not.
CHIPS = {
  'v4': Chip(
    *('v4', 'TPU v4', 3, 4096, 1, 275e12, 32 * 2**30, 1.2e12, 300e9),
    options=(('chip_config_name', 'megacore'),),
  ),
  'v5e': Chip(
    *('v5e', 'TPU v5 lite', 2, 256, 1, 197e12, 16 * 2**30, 819e9, 200e9)
  ),
  'v5p': Chip(
    *('v5p', 'TPU v5', 3, 6144, 1, 459e12, 95 * 2**30, 2.765e12, 600e9)
  ),
  'v6e': Chip(
    *('v6e', 'TPU v6 lite', 2, 256, 1, 918e12, 32 * 2**30, 1.638e12, 400e9)
  ),
  'v7x': Chip(
    *('tpu7x', 'TPU7x', 3, 9216, 2, 2307e12, 192 * 2**30, 7.38e12, 600e9)
  ),
}
_KIB, _MIB = 2**10, 2**20
# Cores, caches and memory of H100, H200 and A100 are those of XLA's own
# descriptions (xla/backends/gpu/target_config/specs), of the others those of
# NVIDIA's data sheets and of its guide to tuning for compute capability 8.9.
# Peaks are the data sheets', without sparsity. Links are one direction of
# NVLink, or of 16 lanes of PCIe 4.0. Between hosts every GPU has the adapter of
# a DGX, of 400 Gb/s (H100, H200) or 200 Gb/s (A100), the others 100 Gb/s.
GPUS = {
  'h100': Gpu(
    *('NVIDIA H100 80GB HBM3', (9, 0), 132, 128, 2048, 228 * _KIB, 50 * _MIB),
    *(1.98, 84942979072, 3.35232e12, 989.4e12, 450e9, 50e9),
  ),
  'h200': Gpu(
    *('NVIDIA H200', (9, 0), 132, 128, 2048, 228 * _KIB, 50 * _MIB),
    *(1.98, 151397597184, 4.8e12, 989.4e12, 450e9, 50e9),
  ),
  'a100-40': Gpu(
    *('NVIDIA A100-SXM4-40GB', (8, 0), 108, 64, 2048, 164 * _KIB, 40 * _MIB),
    *(1.41, 42331013120, 1.5552e12, 312e12, 300e9, 25e9),
  ),
  'a100-80': Gpu(
    *('NVIDIA A100-SXM4-80GB', (8, 0), 108, 64, 2048, 164 * _KIB, 40 * _MIB),
    *(1.41, 85100068864, 2.03904e12, 312e12, 300e9, 25e9),
  ),
  'l4': Gpu(
    *('NVIDIA L4', (8, 9), 58, 128, 1536, 100 * _KIB, 48 * _MIB),
    *(2.04, 23034 * _MIB, 300e9, 121e12, 32e9, 12.5e9),
  ),
  'rtx4090': Gpu(
    *('NVIDIA GeForce RTX 4090', (8, 9), 128, 128, 1536, 100 * _KIB, 72 * _MIB),
    *(2.52, 24564 * _MIB, 1.008e12, 165.2e12, 32e9, 12.5e9),
  ),
}
