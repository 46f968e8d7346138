"""Versions of models in git: read, fetch, verify, compare, promote, publish.

git           git in few processes: tags, files of commits, the registry's lock
versions      versions and the champion, as tags
lineage       from a tag to data, parameters, code and outputs
storage       a version's bytes, from DVC's cache or remote
verification  every digest of a version, recomputed
promotion     challenger against champion, and the roll-back
publishing    bytes, then commits, then tags, to the remotes
evidence      why a version became the champion, or was refused
"""
