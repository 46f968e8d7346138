"""Turn any source of images into an image set.

image_set      an image set, opened from its folder: arrays, labels, names of files, digests
user_files     the images that a user names, as a model takes them
made_to_fit    pictures changed to what a model takes
download       the stage: read the source that `data:` names and write an image set
containers     pictures in a zip file or in Parquet files
folder         any folder of images as a source, in one pass
picture_files  one file of images, with its exact levels
splitting      which images are for training, validation and test
depth          which levels pictures of more than 8 bits have, and what suits them
transforms     changes of the pixels: gray or RGB, crop, resize, pad, fewer bits
catalogue      the published sets: source, licence, counts, checksums
publishers     download or take the publishers' files, and read them
grids          images of levels as 8-bit pixels, and grids of them
as_png         the bits/dim that images take in a PNG file
"""
