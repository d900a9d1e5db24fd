"""Mask R-CNN: its parts with parameters, its targets and its losses."""
