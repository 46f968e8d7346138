"""Samples, and how good they are.

drawing    what is drawn, and drawing it: in batches, and on several devices at once
request    what `vdmctl sample MODEL` asks for, also a picture and a mask to fill in
film       the way from noise to the images, as a strip or a GIF
measuring  the stage: samples compared with training images, next to held-out images
distances  measures between two sets of images, and their errors
features   the stage `features`: the network whose features compare images
"""
