"""Benchmarks: what a step costs, where its time goes, what others need."""
