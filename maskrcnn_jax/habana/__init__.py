"""Habana's command line, flag for flag, on the verbs of this package."""
