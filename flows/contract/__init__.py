"""Check that a likelihood of the images is comparable with others: the discretization contract.

expected    everything that is expected, as one table
inspection  the stage: check an image set against the contract, write the findings
checking    the tables that are checked, and Great Expectations
facts       one pass over the images: facts about each, and sums
traces      what processing leaves: a comb of levels, missing detail, the grid of JPEG
duplicates  images that are equal or look like one of another split, compared with chance
drift       differences of splits, and from another set, compared with chance
findings    what was found, as documents
"""
