"""Benchmarks, one per script: `python -m benchmarks.NAME [--json]`."""
