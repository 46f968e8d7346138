"""Versions of models in git: read, fetch, verify, compare, promote, publish.

versions      versions, champions and refusals, which are GTO's tags
evidence      why a version became the champion, or was refused
costs         what a run costs, counted while it runs
lineage       a version's data, parameters, code and outputs
fetching      a version's model and images, from git, DVC's cache or its remote
images        which images a version and those before it were trained on
verification  recomputes every digest of a version; whether the outputs are those of a commit
promotion     compares challenger and champion; rolls back
publishing    pushes files, then tags and branches in one step; fetches those of other machines
"""
