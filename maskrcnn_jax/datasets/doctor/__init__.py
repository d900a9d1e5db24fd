"""Data set doctor: the checks behind the verb `check`."""
