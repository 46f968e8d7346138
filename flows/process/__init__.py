"""How a process of the project starts, reports, holds locks, and ends.

ending       end a command on an error or a signal
environment  settle the environment variables
groups       run commands in process groups that are stopped as a whole
inputs       notice that the inputs of a stage change while DVC runs it
lifeline     end a process when the process that waits for its result ends
locks        lock files, and allow one trainer per device
progress     show progress bars, on a terminal only
streams      print results and logs to the standard streams
"""
