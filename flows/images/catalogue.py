"""The published image sets of 256 levels: one entry each with licence, counts and checksums."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torchvision import datasets


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """A set of files with a published split."""

    title: str
    homepage: str
    licence: str
    num_train: int
    num_test: int
    files: dict[str, str]
    """sha256 by file name: of the uncompressed bytes or, for ImageNet, of the archive."""
    reader: Callable[..., Any] | None = None
    """torchvision's class for the set, called with its root, whether to read the training images, and `download`.

    Without one, the files are ImageNet's archives: zip files of npz batches or tar files of PNG images, those of the
    training images first.
    """
    folder: str = ""
    """Where the reader expects the files, below its root."""
    archive: str | None = None
    """The tar file in which the publisher packs the folder, if any."""
    class_names: tuple[str, ...] = ()
    """By label; () if the publisher does not state them, or numbers them."""


def idx_set(title: str, homepage: str, licence: str, reader: type[datasets.MNIST], *sha256: str) -> PublishedSet:
    """Return the entry of a set of 60,000 and 10,000 images of 28x28 in MNIST's file format."""
    names = [f"{split}-{kind}" for split in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    return PublishedSet(
        title=title,
        homepage=homepage,
        licence=licence,
        num_train=60_000,
        num_test=10_000,
        files=dict(zip(names, sha256, strict=True)),
        reader=reader,
        folder=f"{reader.__name__}/raw",
        class_names=tuple(reader.classes),
    )


# ImageNet was published at low resolution twice, under the same names.  The images were resized differently: the same
# model reaches about 0.26 bits/dim less on one than on the other.  Checksums distinguish the archives.
IMAGENET_LICENCE = "non-commercial research and education (ImageNet's terms of access)"
imagenet = partial(
    PublishedSet,
    homepage="https://patrykchrabaszcz.github.io/Imagenet32/",
    licence=IMAGENET_LICENCE,
    num_train=1_281_167,
    num_test=50_000,
)
imagenet_2016 = partial(
    PublishedSet,
    homepage="https://arxiv.org/abs/1601.06759",
    licence=IMAGENET_LICENCE,
    num_train=1_281_149,
    num_test=49_999,
)

PUBLISHED = {
    "mnist": idx_set(
        "MNIST",
        "http://yann.lecun.com/exdb/mnist/",
        "CC BY-SA 3.0",
        datasets.MNIST,
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion_mnist": idx_set(
        "Fashion-MNIST",
        "https://github.com/zalandoresearch/fashion-mnist",
        "MIT",
        datasets.FashionMNIST,
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    "cifar10": PublishedSet(
        title="CIFAR-10",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        licence="not stated by the publisher",
        num_train=50_000,
        num_test=10_000,
        files={
            "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
            "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
            "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
            "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
            "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
            "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
            "batches.meta": "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb",
        },
        reader=datasets.CIFAR10,
        folder=datasets.CIFAR10.base_folder,
        archive=datasets.CIFAR10.filename,
        class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "svhn": PublishedSet(
        title="SVHN, cropped digits",
        homepage="http://ufldl.stanford.edu/housenumbers/",
        licence="non-commercial use only",
        num_train=73_257,
        num_test=26_032,
        files={
            "train_32x32.mat": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
            "test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        },
        reader=lambda root, train, download: datasets.SVHN(root, "train" if train else "test", download=download),
    ),
    "imagenet32": imagenet(
        title="ImageNet 32x32 (Chrabaszcz, Loshchilov and Hutter 2017)",
        files={
            "Imagenet32_train_npz.zip": "94226337ecc1b0309d9fcd0167127aaadc931587035fbcb53925235edbaec4fc",
            "Imagenet32_val_npz.zip": "013990e6dec1237dcd1f9beadbab81ead6604cc119af5cacbfb59ae28148377a",
        },
    ),
    "imagenet64": imagenet(
        title="ImageNet 64x64 (Chrabaszcz, Loshchilov and Hutter 2017)",
        files={
            "Imagenet64_train_part1_npz.zip": "9422dc1dc5d092e9814a70a1cb7fc74880d2db5d88a0cb8a34ee363b12bde3f1",
            "Imagenet64_train_part2_npz.zip": "9fafc115afb7e6c301e66dc16b2d737152b427bd5dab26e1293487a6819c7f30",
            "Imagenet64_val_npz.zip": "e1e75133158a1924135a9c6f97a80d2d237b158945e0b34074e58e6c8430eeb8",
        },
    ),
    "imagenet32_2016": imagenet_2016(
        title="ImageNet 32x32 (van den Oord, Kalchbrenner and Kavukcuoglu 2016)",
        files={
            "train_32x32.tar": "244a323d48f8d72f65ad8b54658c01fed68d2d7bdc77ccb43da58c11e94224e5",
            "valid_32x32.tar": "862e559462b24cf736212a19f6b0d47b55c2dc8ebdaa95ccecfe71260124c8f7",
        },
    ),
    "imagenet64_2016": imagenet_2016(
        title="ImageNet 64x64 (van den Oord, Kalchbrenner and Kavukcuoglu 2016)",
        files={
            "train_64x64.tar": "e2a2c1947a748d0d256e98e6d82800d855441dc9e4de2e71a773f1324c4524d7",
            "valid_64x64.tar": "eeac03ec4f585baf871d2b4cb9c974bfe345e74878a74e5820fe6eb1041629cd",
        },
    ),
}
"""The entries by `data.name`."""
