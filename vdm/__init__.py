"""Variational Diffusion Models (Kingma et al. 2021, arXiv 2107.00630), to be read beside the paper.

Every module is named after a part of the paper.  The order in which to read them is
schedule -> diffusion -> discretization -> network -> vlb -> model, then training, evaluation, ode and sampling.
"""
