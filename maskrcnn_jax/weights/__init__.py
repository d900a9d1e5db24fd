"""Weights of other programs: reading, loading and exporting."""
