"""Samples as files.

request   what `vdmctl sample MODEL` asks for
drawing   images from a model: in batches, and on several devices at once
filling   a picture and a mask to fill in
pictures  a grid, single pictures, or an array
film      the way from noise to the images, as a strip or a GIF
"""
