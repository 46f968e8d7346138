"""How a process of the project starts, reports, holds locks, and ends.

ending    how a command ends on an error or a signal
lifeline  a process ends with the one that waits for its result
locks     locks on files, and one trainer per device
progress  progress bars, on a terminal only
streams   standard streams that may be closed or full, and what is printed
groups    commands in process groups that are stopped as a whole
"""
