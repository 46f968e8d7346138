"""The plant that runs the paper: parameters, DVC stages, the Prefect flow and the command line."""
