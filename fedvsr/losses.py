"""The paper's training losses. B clips, T frames, C channels, H x W pixels, values in [0, 1]."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedvsr.errors import UserError
from fedvsr.wavelets import detail_bands

Reduction = Literal["mean", "sum"]


def charbonnier(sr: Tensor, gt: Tensor, eps: float = 1e-9, reduction: Reduction = "mean") -> Tensor:
    """Charbonnier loss `sqrt(d^2 + eps)` of d = sr - gt, over all elements; shapes must be equal.

    `eps` is added inside the root without being squared: 1e-9 in the recipes of VRT and RVRT, 1e-12
    in IART's. It is the paper's epsilon^2 (Eq. 10).
    """
    return _charbonnier(sr - gt, eps, reduction)


def high_frequency(
    sr_BTCHW: Tensor,
    gt_BTCHW: Tensor,
    dwt: Literal["2d", "3d"] = "2d",
    wavelet: str = "haar",
    eps: float = 1e-9,
    reduction: Reduction = "mean",
) -> Tensor:
    """L_HiFr (Eqs. 7 to 10): Charbonnier loss over the detail bands of prediction and ground truth.

    The transform is linear, so it is taken only once, of the difference.

    Args:
        sr_BTCHW: prediction.
        gt_BTCHW: ground truth.
        dwt: "2d" transforms each frame (the paper, three bands); "3d" transforms (T, H, W) together
            (the published implementation, seven bands).
        wavelet: any orthogonal wavelet of PyWavelets.
        eps: added inside the root, as in `charbonnier`.
        reduction: "mean" over all coefficients of all bands, or the "sum" that Eq. 10 writes.

    Raises:
        UserError: the wavelet is unknown or not orthogonal, or "3d" is given a single frame.
    """
    d_BTCHW = sr_BTCHW - gt_BTCHW
    if dwt == "2d":
        bands = detail_bands(d_BTCHW, 2, wavelet)
    else:
        if d_BTCHW.shape[1] < 2:
            raise UserError(
                "algorithm.dwt = '3d' needs at least 2 frames a sample; raise local.num_frames"
            )
        bands = detail_bands(d_BTCHW.transpose(1, 2), 3, wavelet)
    # All bands of a transform have the same shape, so one root over the stack suffices.
    return _charbonnier(torch.stack(bands), eps, reduction)


def contrast(z_NC: Tensor, positive_NC: Tensor, negative_NC: Tensor, temperature: float) -> Tensor:
    """Model-contrastive loss (Li et al. 2021, Eq. 4), a mean over N triples of vectors of length C.

    `-log(e^{s(z, positive) / tau} / (e^{s(z, positive) / tau} + e^{s(z, negative) / tau}))`, where
    s is the cosine.
    """
    near = F.cosine_similarity(z_NC, positive_NC)
    far = F.cosine_similarity(z_NC, negative_NC)
    return F.softplus((far - near) / temperature).mean()


def _charbonnier(d: Tensor, eps: float, reduction: Reduction) -> Tensor:
    # float32 even under autocast: in half precision 1e-9 is zero and the slope at 0 infinite.
    root = torch.sqrt(d.float().square() + eps)
    return root.mean() if reduction == "mean" else root.sum()
