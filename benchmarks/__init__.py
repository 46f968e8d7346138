"""Measurements, run as `python -m benchmarks.NAME`.  Each prints its figures with the machine, versions and commit."""
