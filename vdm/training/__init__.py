"""Training (appendix B): stochastic gradient descent on the bound, with averaged weights and validation.

trainer     one training run, step by step
settings    the settings of a run
batches     what a step draws: images, augmentation, times, noise
optimizer   AdamW, Muon, and the warm-up and decay of their learning rate
log         the training losses, averaged over intervals
validation  the averaged weights on images that training does not see; the best are kept
processes   the processes that train together
"""
