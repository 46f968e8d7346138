"""The commands of vdmctl, by subject.

vdmctl      all commands, and the help
pipeline    the stages, the report and the presets
evaluation  likelihoods and comparisons
registry    versions and the champion
arguments   what the commands are given
inspecting  `vdmctl validate PATH`
summary     results for people
"""
