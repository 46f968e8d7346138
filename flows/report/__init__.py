"""From the results of one model or two to one HTML page that needs no network, no script and no other file.

results   the files with results, and what they say
origin    where the results in the working tree come from
words     how good the samples are, in words
charts    curves and histograms as SVG
pictures  images and grids of images as PNG in the page
odd       the page and the table of how odd images are
page      the stage: the page about one model, or about two side by side
markdown  figures, tables and pictures for Prefect's UI
"""
