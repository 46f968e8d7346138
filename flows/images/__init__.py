"""Turn any source of images into arrays on disk.

preparing      read the source that `data:` names and write an image set
store          an image set on disk, and its digest
transforms     changes of the pixels: gray, resize, pad, fewer bits
catalogue      the published sets: source, licence, counts, checksums
publishers     find, check and read the publishers' files
fetching       downloads that resume where they broke off
imagenet       ImageNet 32x32 and 64x64, streamed
splitting      which images are for training, validation and test
folder         any folder of images as a set
scanning       which files in a folder are images
reading        open an untrusted file safely
picture_files  one file of images, with its exact levels
array_files    .npy files, some rows at a time
"""
