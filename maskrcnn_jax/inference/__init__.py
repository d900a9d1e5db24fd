"""Detects objects in images that are of no data set."""
