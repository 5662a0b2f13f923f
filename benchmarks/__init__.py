"""The benchmark program, `python -m benchmarks` (see __main__.py)."""
