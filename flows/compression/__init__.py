"""Lossless compression with a trained model, to .vdmz files and back.

batches  in which batches images are coded
rans     the entropy coder
coding   images to and from the content of a file
files    the commands, with outputs that appear whole or not at all
"""
