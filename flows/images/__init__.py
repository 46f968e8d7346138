"""Turn any source of images into an image set.

image_set      an image set, opened from its folder: arrays, labels, names of files, digests
user_files     the images that a user names, as a model takes them
made_to_fit    pictures changed to what a model takes
download       the stage: read the source that `data:` names and write an image set
source         a source: pictures with names, labels and splits, whatever contains them
folder         the files of pictures in a folder, a file or a container
unpacking      containers, unpacked into a folder
containers/    the kinds of containers, one file each: zip, Parquet
reading        the files of a source, read in one pass
labels         the labels of pictures, of tables or of folders
picture        a picture, read from a file with its exact levels
splitting      which images are for training, validation and test
depth          which levels pictures of more than 8 bits have, and what suits them
transforms     changes of the pixels: gray or RGB, crop, resize, pad, fewer bits
catalogue      the published sets: source, licence, counts, checksums
publishers     download or take the publishers' files, and read them
grids          images of levels as 8-bit pixels, and grids of them
as_png         the bits/dim that images take in a PNG file
"""
