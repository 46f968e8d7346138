"""How a process of the project starts, reports, holds locks, and ends.

ending     end a command on an error or a signal
addresses  at which programs of the project listen
answering  listen there for HTTP: how many connections, and how long one may ask nothing or read nothing
guard      who may ask over HTTP, and how much
groups     run commands in process groups that are stopped as a whole, in a settled environment
inputs     notice that the inputs of a stage change while DVC runs it
lifeline   end a process when the process that waits for its result ends
locks      lock files, and allow one trainer per device
apps       the apps that run on this machine, by their locks
progress   how far a training is, for the process that waits for it
streams    print results, logs and progress bars
"""
