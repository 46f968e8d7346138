"""The pipeline around `vdm`: parameters, DVC stages, the Prefect flow and the command line."""

import os

# Idle threads of OpenMP sleep sooner.  By default they keep their core busy so long that two jobs on the same cores
# slow each other down many times (docs/results.md).  It holds if torch is imported later.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
