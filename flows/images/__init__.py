"""Turn any source of images into arrays on disk.

preparing      read the source that `data:` names and write an image set
store          an image set on disk, and its digest
transforms     changes of the pixels: gray, resize, pad, fewer bits
splitting      which images are for training, validation and test
catalogue      the published sets: source, licence, counts, checksums
publishers     fetch, check and read the publishers' files
folder         any folder of images as a set, in one pass
scanning       which files in a folder are images
picture_files  one file of images, with its exact levels
"""
