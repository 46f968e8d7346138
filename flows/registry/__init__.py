"""Versions of models in git: read, fetch, verify, compare, promote, publish.

git           git commands: tags, files of commits, the registry's lock
versions      versions and the champion, which are tags
lineage       a tag's data, parameters, code and outputs
storage       a version's files, from DVC's cache or remote
verification  recomputes every digest of a version
promotion     compares challenger and champion; rolls back
publishing    pushes files, then commits and tags in one step
remote        the refs of this repository and of the git remote
pruning       chooses the versions that stay; removes tags and branches of the others
cache         removes the files in DVC's cache that no version needs
lock_file     dvc.lock and dvc.yaml at a commit
reproduction  whether the outputs are those of the commit that is checked out
evidence      why a version became the champion, or was refused
"""
