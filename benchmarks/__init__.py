"""The benchmark program, `python -m benchmarks` (see __main__.py): limits, peers and our kernel in one run."""
