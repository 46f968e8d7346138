"""The figures that evaluations leave, as documents: metrics.json, an ODE likelihood, a comparison.  All in bits/dim."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from flows.core.documents import Count, Document, Number, Sha256


def finite(value: Any) -> Any:
    """Return a number as it is, and None for NaN and infinities, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Figure = Annotated[Number | None, BeforeValidator(finite)]


class Metrics(Document):
    """What the registry reads from the metrics.json of any version of the pipeline."""

    bpd: Figure = None
    bpd_standard_error: Figure = None
    num_images: Count | None = None
    data_sha256: Sha256 | None = None
    model_sha256: Sha256 | None = None


class Environment(Document):
    """Versions of Python, torch and NumPy, and the processor.

    `requirements_sha256` is the digest of requirements.lock, and None where that file is missing.
    """

    python: str
    torch: str
    numpy: str
    processor: str
    requirements_sha256: Sha256 | None


class BoundMetrics(Metrics):
    """metrics.json: the variational bound on the test images, its terms and its errors."""

    protocol: Literal["vlb"] = "vlb"
    bpd: Figure
    bpd_standard_error: Figure
    bpd_monte_carlo_standard_error: Figure = None
    prior_bpd: Figure
    reconstruction_bpd: Figure
    diffusion_bpd: Figure
    num_images: Count
    seed: Count | None = None
    times_per_image: Count
    num_timesteps: Count | None
    environment: Environment | None = None


class OdeMetrics(Metrics):
    """The likelihood of the probability-flow ODE on test images.

    `bpd_numerical_error` is what the solver's tolerance adds to `bpd`; a negative error flatters the model.  It is
    measured on the first `num_repeated` images, against a tenth of the tolerance.
    """

    protocol: Literal["ode"] = "ode"
    bpd: Figure
    bpd_standard_error: Figure
    bpd_numerical_error: Figure
    num_images: Count
    num_repeated: Count
    seed: Count
    num_draws: Count
    num_probes: Count
    dequantisation: str
    tolerance: Number
    batch_size: Count


class ModelFigures(Document):
    """One of the two models of a comparison."""

    model: str
    bpd: Figure
    bpd_standard_error: Figure
    model_sha256: Sha256
    data_sha256: Sha256


class Comparison(Document):
    """The difference second - first over the same images, times and noise."""

    protocol: Literal["vlb"] = "vlb"
    models: Annotated[list[ModelFigures], Field(min_length=2, max_length=2)]
    difference_bpd: Figure
    difference_standard_error: Figure
    confidence: Number
    confidence_interval: Annotated[list[Figure], Field(min_length=2, max_length=2)]
    num_images: Count
    seed: Count
    times_per_image: Count
    num_timesteps: Count | None
