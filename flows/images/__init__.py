"""Turn any source of images into arrays on disk.

preparing      read the source that `data:` names and write an image set
store          an image set on disk, and its digest
labels         the labels of a set as the classes of a model
transforms     changes of the pixels: gray, resize, pad, fewer bits
splitting      which images are for training, validation and test
catalogue      the published sets: source, licence, counts, checksums
publishers     download or take the publishers' files, and read them
folder         any folder of images as a set, in one pass
picture_files  one file of images, with its exact levels
pictures       the files that a user names, as a model takes them
"""
