"""LPIPS, which needs the extra `metrics`. Frames are uint8 RGB arrays."""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fedvsr.errors import UserError
from fedvsr.metrics.fidelity import Frames, PerFrame, require_frames


def lpips(sr: Frames, gt: Frames) -> PerFrame:
    """Compute learned perceptual distance (Zhang et al. 2018, AlexNet, version 0.1) for each frame.

    It needs the extra `metrics` and AlexNet's published weights, which torchvision downloads once.

    Args:
        sr: uint8 RGB `(..., H, W, 3)`; it is scaled to [-1, 1], as in the measure's training.
        gt: the same shape.

    Returns:
        float64 `(...)`, 0 for equal frames; lower is more similar.

    Raises:
        UserError: the package is missing, or the weights cannot be downloaded.
    """
    require_frames(sr, gt)
    network = _lpips_network()
    height, width = gt.shape[-3:-1]
    pairs = zip(sr.reshape(-1, height, width, 3), gt.reshape(-1, height, width, 3), strict=True)
    with torch.inference_mode():
        scaled = ([_scaled(f) for f in pair] for pair in pairs)
        values = [float(network(x, y)) for x, y in scaled]
    return np.asarray(values).reshape(gt.shape[:-3])


@lru_cache(maxsize=1)
def _lpips_network() -> torch.nn.Module:
    try:
        import lpips as package
    except ImportError:
        raise UserError(
            "evaluation.lpips needs the package lpips: pip install 'fedvsr[metrics]'"
        ) from None
    try:
        with warnings.catch_warnings():
            # The package calls torchvision's AlexNet in a way about which newer releases warn.
            warnings.simplefilter("ignore")
            network: torch.nn.Module = package.LPIPS(net="alex", verbose=False)
    except OSError as error:
        raise UserError(
            f"AlexNet's weights cannot be downloaded for evaluation.lpips ({error}); put "
            f"alexnet-owt-7be5be79.pth into {torch.hub.get_dir()}/checkpoints"
        ) from None
    return network.eval()


def _scaled(frame: Frames) -> Tensor:
    """A frame as float32 (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float() / 127.5 - 1
