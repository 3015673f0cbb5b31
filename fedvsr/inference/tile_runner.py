"""Runs a network on tiles. A GPU replays equal tiles as one graph, and works ahead of the host."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedvsr.graphs import Replayed
from fedvsr.precision import Precision, autocast, products

# Waits for a tile's output, float32 (T, C, H, W) on the host.
Result = Callable[[], Tensor]


class TileRunner:
    """Runs a network on tiles, on the device of its parameters.

    Args:
        network: maps (1, T, 3, H, W) in [0, 1] to (1, T, 3, scale * H, scale * W).
        precision: the precision that it computes in.
    """

    def __init__(self, network: nn.Module, precision: Precision = "fp32") -> None:
        self._network, self._precision = network, precision
        self._device = next(network.parameters()).device
        on_gpu = self._device.type == "cuda"
        self.ahead = 1 if on_gpu else 0
        """Tiles to start before the output of the first of them is used."""
        self._replayed = Replayed[Tensor]("the network") if on_gpu else None
        self._stream = torch.cuda.Stream(self._device) if on_gpu else None  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def start(self, part_THWC: Tensor) -> Result:
        """Start a tile (T, H, W, 3), uint8, or int32 with 16 bits."""
        if self._replayed is None:
            sr_TCHW = self._run(part_THWC)
            return lambda: sr_TCHW
        with torch.cuda.stream(self._stream):
            on_gpu = self._replayed("tile", self._run, part_THWC.pin_memory())
            sr_TCHW = torch.empty(on_gpu.shape, pin_memory=True)
            sr_TCHW.copy_(on_gpu, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()

        def wait() -> Tensor:
            done.synchronize()
            return sr_TCHW

        return wait

    def _run(self, part_THWC: Tensor) -> Tensor:
        peak = 255 if part_THWC.dtype == torch.uint8 else 65535
        lq_BTCHW = part_THWC.permute(0, 3, 1, 2)[None].float().div_(peak)
        with products(self._precision), autocast(self._device, self._precision):
            sr_BTCHW: Tensor = self._network(lq_BTCHW)
        return sr_BTCHW[0].float()
