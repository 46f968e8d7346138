"""The commands of vdmctl, by subject.

vdmctl      the whole command line, its help, and `serve`
pipeline    the stages, the report and the presets
evaluation  likelihoods and comparisons
sampling    samples, and their quality
compression  images to compressed files and back
registry    versions and the champion
operating   the state of the retraining loop
arguments   checks of arguments, and params.yaml
options     parameters replaced by options
inspecting  `vdmctl validate PATH`
reporting   `vdmctl report --out`
summary     results as text
"""
