"""Check that a likelihood of the images is comparable with others: the discretization contract.

checks      everything that is expected, one check each
inspection  the stage: check an image set against the contract, write the findings
limits      what a check allows, and the rule by which that is applied
checking    tables of what the checks measure, and Great Expectations
facts       one pass over the images: facts about each, and sums
traces      what processing leaves: a comb of levels, missing detail, the grid of JPEG
duplicates  images that are equal or look like one of another split, compared with chance
drift       differences of splits, and from another set, compared with chance
findings    what was found, as documents
"""
