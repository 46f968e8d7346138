"""The plant that runs the paper: parameters, DVC stages, the Prefect flow and the command line."""

from flows.process.lifeline import end_with_starters

# Here, since every process of the project imports this package first, before the slow imports.
end_with_starters()
