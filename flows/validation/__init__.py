"""Check that a likelihood of the images is comparable with others: the discretization contract.

contract      everything that is expected, as one table
inspection    check an image set against the contract, write the report
facts         one pass over the images: facts about each, and sums
comb          gaps and peaks in the histogram of the levels
space         detail that is missing, and the grid that JPEG leaves
duplicates    images that are equal or look like one of another split, compared with chance
drift         differences of splits, and from another set, compared with chance
tables        the tables that are checked
expectations  Great Expectations and its site
report        the report as models
picture       histograms, offending images and similar pairs, as a PNG
"""
