"""Samples as files.

request   what `vdmctl sample MODEL` asks for, also a picture and a mask to fill in
drawing   images from a model: in batches, and on several devices at once
pictures  a grid, single pictures, or an array
film      the way from noise to the images, as a strip or a GIF
"""
