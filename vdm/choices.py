"""The words and counts that options of the model, of training, evaluation and sampling may take.  Loads no torch."""

from typing import Literal

ScheduleKind = Literal["fixed_linear", "learned_linear", "learned_monotone"]
"""A noise schedule of `vdm.schedule` (appendix H)."""
Transform = Literal["flip", "rotate", "swap_channels"]
"""A random change of training images (section 6); see `vdm.training.batches.augment`."""
Precision = Literal["float32", "bfloat16"]
"""The number format of the network's matrix products and convolutions."""
Compile = Literal[True, False, "graphs"]
"""Whether torch compiles the loss; `graphs` also launches its kernels at once, as CUDA graphs."""
ImagesOn = Literal["auto", "device", "host"]
"""Where training images are kept; `auto`: on the device if they take less than half of its free memory."""
OptimizerKind = Literal["adamw", "muon"]
"""The optimizer of the weights; see `vdm.training.optimizer.optimizers`."""
LearningRateDecay = Literal["none", "linear", "cosine"]
"""How the learning rate decays after its warm-up; see `vdm.training.optimizer.learning_rate_factor`."""
Split = Literal["train", "validation", "test"]
"""A part of an image set."""
TrainingImages = Literal["train", "train_and_validation"]
"""The images that a model is fitted to."""
FITTED_SPLITS: dict[TrainingImages, tuple[Split, ...]] = {
    "train": ("train",),
    "train_and_validation": ("train", "validation"),
}
"""The splits that these images are."""
Keep = Literal["best", "last"]
"""The averaged weights with which training ends: those of the best validation, or the last ones."""
Dequantisation = Literal["uniform", "truncated_normal"]
"""The density inside a pixel's cell, which makes pixels continuous; see `vdm.ode.log_weight`."""
Given = Literal["class", "nothing"]
"""What a likelihood is conditioned on: p(x | c) with the class of each image, or p(x)."""
GridKind = Literal["gamma", "t"]
"""The quantity in which the noise levels of a sampler's steps are evenly spaced; see `vdm.sampling.Solver`."""

MOST_LEVELS = 2**16
"""The largest number of levels of a pixel."""
MOST_BLOCKS = 1024
"""The largest `blocks` of `vdm.network.NoisePredictor`."""
