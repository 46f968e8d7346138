"""What all of `flows` may use: errors, parameters, paths, typed documents, trained models.

errors        errors that the user can correct, and the exit codes
escaping      text from data, escaped for terminals and Markdown
tables        text in columns
layout        the paths in a project's folder
params        the sections of params.yaml, strictly typed, with the limits of each parameter
params_file   params.yaml itself, and the presets of which it is made
documents     JSON files and parsed YAML as typed models
bounded_yaml  YAML whose size and depth are bounded
files         reading regular files of bounded size, writing whole files and folders, paths that come from data
model         a trained model, opened from its folder
network_code  the code of networks of the user's own, by their names
networks      networks of the user's own, made of their code or given by hand
ancestry      the models from which a training began, as documents
card          the card of a model, made of what its folder says
judgement     what the figures of a model mean, in words
device        the device and the precision that the parameters select
"""
