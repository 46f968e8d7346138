"""What every room may use: errors, parameters, paths, typed documents, and limits of size.

errors        errors that the user can correct, and the exit codes
escaping      text from data, made harmless where it is shown
layout        the paths in a project's folder
params        params.yaml, parsed strictly
sources       `data.source` as a path
documents     JSON and YAML that are read back, as typed documents
bounded_yaml  YAML whose size, depth and aliases are bounded
files         reading regular files of bounded size, writing whole files and folders
checkpoint    a model or a training state on disk
memory        sizes that do not fit into memory, refused before anything is allocated
device        which device and precision the parameters mean
"""
