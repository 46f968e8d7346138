"""The features of Inception, for the true FID and KID.  Its weights are a file of the user's; nothing is downloaded."""

from pathlib import Path

import numpy as np
import torch

from flows.core.errors import Exit, UserError, brief
from flows.core.files import file_sha256
from flows.images.store import eight_bit

BATCH = 32
LAYER = "2048"


def inception_network(weights: Path) -> torch.nn.Module:
    """Return torch-fidelity's Inception, which gives the published FID's values, with the weights of the file.

    Raises UserError (exit 5) if the file is not of this network.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network: torch.nn.Module
    try:
        # torch-fidelity would unpickle anything; this reads tensors only, and fails for other files.
        torch.load(weights, map_location="cpu", weights_only=True)
        network = FeatureExtractorInceptionV3("inception", [LAYER], feature_extractor_weights_path=str(weights))
    except Exception as error:
        raise UserError(
            f"{weights}: not the weights of torch-fidelity's Inception: {brief(error)}", Exit.MISSING
        ) from error
    return network


def inception_features(
    images: np.ndarray, num_levels: int, network: torch.nn.Module, device: torch.device
) -> np.ndarray:
    """Return the pooled features (N,2048) of images (N,C,H,W), gray or in colour, by the network on the device."""
    batches = torch.from_numpy(eight_bit(images, num_levels)).expand(-1, 3, -1, -1).split(BATCH)
    return torch.cat([network(batch.to(device))[0].double().cpu() for batch in batches]).numpy()


def require_inception(num_channels: int, weights: Path, sha256: str) -> None:
    """Raise UserError unless images with this number of channels can be embedded.

    Its exit code is 2 if the number is not 1 or 3, or if torch-fidelity is not installed, and 5 if the weights have
    another digest.  Raises OSError if they cannot be read.
    """
    if num_channels not in (1, 3):
        raise UserError(f"Inception takes images of 1 or 3 channels, not {num_channels}", Exit.USAGE)
    try:
        import torch_fidelity  # noqa: F401
    except ImportError as error:
        advice = "pip install 'vdm-pipeline[metrics]'"
        raise UserError(f"sample.inception_weights needs torch-fidelity: {advice}", Exit.USAGE) from error
    if (found := file_sha256(weights)) != sha256:
        raise UserError(f"{weights}: its sha256 is {found}, sample.inception_sha256 says {sha256}", Exit.MISSING)
