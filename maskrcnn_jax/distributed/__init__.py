"""Devices and processes: backends, the mesh of a run, the start of a job."""
