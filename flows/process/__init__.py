"""How a process of the project starts, reports, holds locks, and ends.

ending    end a command on an error or a signal
groups    run commands in process groups that are stopped as a whole, in a settled environment
inputs    notice that the inputs of a stage change while DVC runs it
lifeline  end a process when the process that waits for its result ends
locks     lock files, and allow one trainer per device
progress  how far a training is, for the process that waits for it
streams   print results, logs and progress bars
"""
