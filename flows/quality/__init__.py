"""The quality of samples, compared with that of test images.

features    the network whose features compare images, trained by the pipeline
distances   measures between two sets of images, and their errors
measuring   the samples' figures and the nearest training images
inception   the same distances in the features of Inception, if its weights are given
"""
