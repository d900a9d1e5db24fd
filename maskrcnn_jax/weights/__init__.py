"""Weights of other systems, one file per foreign format."""
