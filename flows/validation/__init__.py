"""Check that a likelihood of the images is comparable with others: the discretization contract.

inspection    check an image set against the contract, write the report
contract      the expectations
tables        the tables that are checked
facts         one pass over the images, in constant memory
duplicates    repeated images and near-duplicates
comb          gaps and peaks in the histogram of the levels
drift         distance from the pixels of another set
expectations  Great Expectations and its site
report        the report as models
picture       histograms and offending images, as a PNG
"""
