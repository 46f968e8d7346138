"""One training run: its processes, its saved states, its training log.

fitting      the training in one process, with states saved on the way
distributed  the start of several processes, on torch's elastic agent
collectives  what the processes do together: share values, raise each other's errors
runs         saved states, the training log
"""
