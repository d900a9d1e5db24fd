"""The command line of Habana's Mask R-CNN: see docs/coming_from_the_seed.md."""

import sys

from maskrcnn_jax.habana import flags as seed_flags

if __name__ == '__main__':
  sys.exit(seed_flags.main(sys.argv[1:]))
