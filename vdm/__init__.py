"""Variational Diffusion Models (Kingma et al. 2021, arXiv 2107.00630), to be read beside the paper.

The order in which to read it is schedule -> diffusion -> discretization -> network -> vlb -> model.  Then come
evaluation, ode, sampling and codec, which use these and not each other, and `training`, which validates by evaluation.
`classification` and `surprise` use evaluation.  `choices` has the words that options may take, `samplers` the samplers
by name, `prefetch` arrays made ahead of the device, and `errors` the exceptions.  Nothing here imports `flows`.
"""
