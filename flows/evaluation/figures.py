"""The figures of a model in words, each declared once: by its key in metrics.json, its name, meaning, unit and source.

The report page, Prefect's artifacts, LaTeX and docs/samples.md take them from here.
"""

from typing import NamedTuple


class Declared(NamedTuple):
    """A figure in words."""

    name: str
    meaning: str
    unit: str
    source: str


BPD = "bits/dim"
FRECHET = "Heusel et al. 2017, arXiv 1706.08500, eq. 6"
KERNEL = "Binkowski et al. 2018, arXiv 1801.01401, section 4"
MANIFOLDS = "Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 2"

TERMS = {
    "prior_bpd": Declared("prior", "information about the image that is left in z_1", BPD, "eq. 11"),
    "reconstruction_bpd": Declared("reconstruction", "finding the levels of the pixels from z_0", BPD, "eq. 11"),
    "diffusion_bpd": Declared("diffusion", "removing the noise from z_1 to z_0", BPD, "eq. 17; section 4 for T steps"),
}
"""The terms of the bound, whose sum it is."""
QUALITY = {
    "fd": Declared(
        "Fréchet distance", "distance of the means and covariances of features; 0 is best", "squared", FRECHET
    ),
    "kd": Declared("kernel distance", "squared maximum mean discrepancy of features; 0 is best", "squared", KERNEL),
    "fid": Declared("FID", "Fréchet distance in Inception's features; 0 is best", "squared", FRECHET),
    "kid": Declared("KID", "kernel distance in Inception's features; 0 is best", "squared", KERNEL),
    "precision": Declared("precision", "share of samples that lie among real images; 1 is best", "share", MANIFOLDS),
    "recall": Declared(
        "recall",
        "share of real images that lie among samples; 1 is best, but only beside a high precision: noise may have 0.7",
        "share",
        MANIFOLDS,
    ),
    "nearer_than_held_out": Declared(
        "nearer to a training image",
        "probability that a sample is nearer to its nearest training image, in pixels, than a test image is to its own;"
        " above 0.5, the model repeats training images, or its samples are smoother than real ones",
        "probability",
        "Meehan et al. 2020, arXiv 2004.05675",
    ),
}
"""How good samples are.  A key of figures in the features of one network ends in its digest: `fd_<8 hex>`."""


def find_declared(key: str) -> Declared:
    """Return the words of a figure of the quality of samples; its key alone if it is not known."""
    return QUALITY.get(key) or QUALITY.get(key.rpartition("_")[0]) or Declared(key, "", "", "")
