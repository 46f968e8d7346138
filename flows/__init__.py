"""The plant that runs the paper: parameters, DVC stages, the Prefect flow and the command line."""

from flows.process.lifeline import end_with_starters

# Here, since every process of ours imports this first: a starter that dies a moment later is noticed.
end_with_starters()
