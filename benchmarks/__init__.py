"""Measurements: `python -m benchmarks.NAME`.  Each prints the machine, the versions and the commit with its figures."""
