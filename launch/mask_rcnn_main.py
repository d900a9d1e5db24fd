"""The command line of Habana's Mask R-CNN: see docs/coming_from_habana.md."""

import sys

from maskrcnn_jax.habana import command

if __name__ == '__main__':
  sys.exit(command.main(sys.argv[1:]))
