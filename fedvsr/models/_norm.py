"""LayerNorm over channels that lie last; on a GPU in one kernel each way.

PyTorch's own kernels for rows as short as these take a tenth of a training step, and write float32
that the next layer's products read in another pass as bfloat16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedvsr.models._triton import fused


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` over the last axis.

    On a GPU under autocast, the result has the dtype of autocast, in which its readers, linear
    layers, compute anyway.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., channels)` to the same."""
        if not fused(x) or torch.compiler.is_compiling():
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        from fedvsr.models._norm_triton import layer_norm

        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        return layer_norm(x, self.weight, self.bias, self.eps, dtype)
