"""From a model and images to figures.

terms        the one evaluation: the terms of the bound of every image
bound        the stage: the variational bound as metrics, and the paired comparison of two models
classes      what the classes are worth, and images by their likelihood given each class
calibration  the features of held-out images, kept to compare others with
error_curve  the errors on validation images over the noise levels, to which grids of few steps are fitted
surprise     how odd images are
labels       images whose label is unlikely
odd          odd images and unlikely labels, as documents
ode          the likelihood of the probability-flow ODE
results      the figures that evaluations leave, as documents
figures      each figure in words: name, meaning, unit, source
"""
