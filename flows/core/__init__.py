"""What all of `flows` may use: errors, parameters, paths, typed documents, and limits of size.

errors        errors that the user can correct, and the exit codes
escaping      text from data, escaped for terminals and Markdown
layout        the paths in a project's folder
params        the sections of params.yaml, strictly typed
fields        the types of their parameters, with their limits
params_file   params.yaml itself: reading it, and saying where it is wrong
documents     JSON files and parsed YAML as typed models
bounded_yaml  YAML whose size, depth and aliases are bounded
files         reading regular files of bounded size, writing whole files
folders       writing whole folders, one process at a time
checkpoint    a model or a training state on disk
limits        the control groups of this process, and the cores that they allow
memory        sizes that do not fit into memory, refused before anything is allocated
device        the device and the precision that the parameters select
"""
