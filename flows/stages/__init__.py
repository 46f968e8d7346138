"""The DVC stages: one function each, from files to files.

download  an image set as arrays on disk
validate  the images against the contract
train     the model, with averaged weights
register  the model and its card in one folder, for the registry
evaluate  bits/dim of every test image
features  the classifier whose features compare images
sample    images from the model, compared with training images
report    one page with all results
"""
