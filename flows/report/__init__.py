"""From the results of one model or two to one HTML page that needs no network, no script and no other file.

page        the page about one model
comparison  the page that compares two models
results     the files with results, and what they say
tables      results in CSV files
quality     how good the samples are, in words
checks      what validation found, with the images that break an expectation
charts      curves and histograms as SVG, in the colours of the page
pictures    images and grids of images as PNG
markdown    figures, tables and pictures for Prefect's UI
templates   Jinja, which escapes all text, and how numbers are written
"""
