"""Checkpoints, saved, verified, restored and pruned with Orbax."""
