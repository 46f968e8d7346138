"""Networks of your own, for `model.network: networks.FILE:Class` in params.yaml; docs/python.md explains them.

What lies here is run: whoever opens a model that names one of these classes makes it.
"""
