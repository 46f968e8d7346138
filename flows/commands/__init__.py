"""The commands of vdmctl, by subject.  They import what is heavy when they run, so that `--help` is quick.

vdmctl       the whole command line and its help
pipeline     the stages up to `register`, the report and the presets
evaluation   the stage `evaluate`, and other likelihoods and comparisons
exchange     a model of another implementation, a model for the Hub
sampling     the stages `features` and `sample`, and other samples
compression  images to compressed files and back
app          a model that answers in a browser
registry     versions and the champion
operating    the retraining loop: start it, show its state, free its disk space
arguments    what commands share: MODEL, --json, --force, params.yaml, and options that replace its parameters
summary      results as text
json_docs    docs/json.md, made from the documents that are printed
"""
