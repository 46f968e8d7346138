"""One training run: its processes, its saved states, its training log.

fitting      the training in one process, with states saved on the way
distributed  several processes as one run, on torch's elastic agent
runs         saved states, the training log, the signals that stop a run
"""
