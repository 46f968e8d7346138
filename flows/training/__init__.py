"""One training run: its processes, its saved states, its training log.

fitting      the training in one process, with states saved on the way
distributed  several processes: their start on torch's elastic agent, and what they do together
runs         saved states, the training log
"""
