"""What all of `flows` may use: errors, parameters, paths, typed documents, models on disk.

errors        errors that the user can correct, and the exit codes
escaping      text from data, escaped for terminals and Markdown
layout        the paths in a project's folder
params        the sections of params.yaml, strictly typed, with the limits of each parameter
params_file   params.yaml itself: reading it, and saying what is wrong with it
presets       whole files of parameters from presets, which name only what differs
documents     JSON files and parsed YAML as typed models
bounded_yaml  YAML whose size and depth are bounded
files         reading regular files of bounded size, writing whole files, paths that come from data
folders       writing whole folders
checkpoint    a model or a training state on disk
device        the device and the precision that the parameters select
"""
