"""The pipeline around `vdm`: parameters, DVC stages, the Prefect flow and the command line.

Every process of the project imports this package first, before the slow imports.
"""

import atexit
import gc

from flows.process.lifeline import end_with_starters

# Python would look for cycles among everything that was imported, again and again while torch, Prefect or Great
# Expectations are imported, and at the end.  That is a third of the time of a short command.
gc.set_threshold(*gc.get_threshold()[:2], 100)
atexit.register(gc.freeze)

end_with_starters()
