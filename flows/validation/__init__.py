"""Check that a likelihood of the images is comparable with others: the discretization contract.

inspection    check an image set against the contract, write the report
contract      the expectations
tables        the tables that are checked
facts         one pass over the images: facts about each, and sums
space         detail that is missing, and the grid that JPEG leaves
comb          gaps and peaks in the histogram of the levels
moved         the most similar image of another split, even if it is mirrored, shifted or noisy
duplicates    images that are equal or look like one of another split, compared with chance
labels        how frequent labels are, and what they explain
drift         differences of splits, and from another set, compared with chance
expectations  Great Expectations and its site
report        the report as models
picture       histograms, offending images and similar pairs, as a PNG
"""
