"""Variational Diffusion Models (Kingma et al. 2021, arXiv 2107.00630), read beside the paper.

Every module is named after the part of the paper that it states:
schedule -> diffusion -> discretization -> network -> vlb -> model, then training, evaluation and sampling.
"""
