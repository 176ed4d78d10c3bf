"""Measurements: one script per question, `python -m benchmarks.NAME [--json]`."""
