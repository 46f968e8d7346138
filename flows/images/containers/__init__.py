"""The kinds of containers of pictures, one file each; `flows.images.unpacking` finds them."""
