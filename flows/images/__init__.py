"""Any source of images becomes arrays on disk.

preparing      from `data:` to an image set on disk
store          an image set on disk, and its digest
transforms     what may be done to pixels: gray, resize, pad, fewer bits
catalogue      the published sets: source, licence, counts, checksums
publishers     their files: found, checked, read
fetching       downloads that continue where they broke off
imagenet       ImageNet 32x32 and 64x64, streamed
folder         any folder of images as a set
scanning       which files below a folder are images
reading        a file from somebody else, opened safely
picture_files  one file of images, its levels exactly
array_files    .npy files, some rows at a time
"""
