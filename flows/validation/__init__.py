"""Whether a likelihood of the images is comparable: the discretization contract.

inspection    an image set against the contract, and the report
contract      the expectations
tables        the tables that they are checked on
report        the report as models
facts         one pass over the images, in constant memory
duplicates    images that are there twice, or nearly
comb          levels that were spread or squeezed
drift         distance from the pixels of another set
expectations  Great Expectations, and its site
picture       histograms and offending images, as a picture
"""
