"""The project's folder as git, DVC and GTO see it.  No other room imports DVC or GTO.

repository  the folder: git commands, here and at the remote `origin`; DVC's handle; the lock of the versions
tags        GTO's tags
commit      a commit of the repository: its files in git, its dvc.lock, its outputs
lock_file   dvc.lock and dvc.yaml
files       outputs of a commit, from DVC's cache or its remote
cache       which files DVC's cache and its remote have, and which of them nothing needs
stages      DVC's stages in a run's folder: what was made before is restored
sources     where DVC finds the images, and whether they changed
"""
