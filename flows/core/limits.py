"""How many cores this process may use."""

import joblib  # type: ignore[import-untyped]


def cores() -> int:
    """Return the number of cores that this process may use, by its affinity and by the limits of its control groups."""
    return int(joblib.cpu_count())
