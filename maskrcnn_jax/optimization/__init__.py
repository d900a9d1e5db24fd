"""Optimizers, learning rate schedules, gradient accumulation and lengths."""
