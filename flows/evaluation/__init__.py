"""From a model and images to figures, and models of other implementations.

bound      the variational bound on the test images, as metrics
classifying  images by their likelihood given each class
protocols  the ODE likelihood, and the paired comparison
solver     the solver of the probability-flow ODE
importing  checkpoints of other implementations as model folders
results    the figures that evaluations leave, as documents
"""
