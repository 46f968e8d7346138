"""The DVC stages: one module each, one function of the same name, from files to files.

A stage knows neither DVC nor Prefect and says nothing but through logging.
"""
