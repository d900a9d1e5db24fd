"""Benchmarks: time and memory of a step and its stages, and torchvision's."""
