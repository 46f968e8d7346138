"""Versions of models in git: read, fetch, verify, compare, promote, publish.

git           git commands, here and at the remote `origin`; the registry's lock
versions      versions, champions and refusals, which are GTO's tags
evidence      why a version became the champion, or was refused
lock_file     dvc.lock, in the working tree and at a commit; a version's data, parameters, code and outputs
storage       a version's files, from git, DVC's cache or its remote
verification  recomputes every digest of a version; whether the outputs are those of a commit
promotion     compares challenger and champion; rolls back
publishing    pushes files, then tags and branches in one step; fetches those of other machines
"""
