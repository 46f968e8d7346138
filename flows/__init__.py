"""The pipeline around `vdm`: parameters, DVC stages, the Prefect flow and the command line."""
