"""Lossless compression with a trained model, to .vdmz files and back.

rans      the entropy coder
batches   in which batches images are coded, and when they are checked
coding    batches to and from the stack
header    what a file says of its model, its images and the machine that wrote it
words     the code in the file: its stack on disk, its blocks with checksums
images    images of any kind as one array, and arrays as files
encoding  from images to a file
decoding  from a file to images
files     both, with outputs that appear whole or not at all
"""
