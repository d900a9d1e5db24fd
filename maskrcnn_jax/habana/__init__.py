"""Command line of Habana's Mask R-CNN for TensorFlow, flag for flag."""
