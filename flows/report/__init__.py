"""From the results of one model or two to one HTML page that needs no network, no script and no other file.

words     how good the samples are, in words
charts    curves and histograms as SVG
pictures  images and grids of images as PNG in the page
odd       the page and the table of how odd images are
page      the stage: the page about one model, or about two side by side
markdown  figures, tables and pictures for Prefect's UI
"""
