"""Optical flow and warping, shared by the networks: SpyNet (Ranjan & Black 2017), `flow_warp`.

N images or pairs, B clips, T frames, C channels, H x W the tensor's own height and width. A flow
(N, 2, H, W) holds dx (columns, to the right), then dy (rows, downwards), in pixels of its own size,
always float32. The flow from a to b lies on the grid of a and points to where a pixel of a is in
b: warping b with it gives an image aligned to a.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedvsr.errors import UserError
from fedvsr.models._checkpoint import load_tensors, read_tensors
from fedvsr.models._sampling import grid_sample, pixel_index, pixel_places, sampling_grid
from fedvsr.models.spec import flow_name

_FINEST = 5
# Pairs are processed in chunks of at most this many pixels, which bounds the memory of long clips.
_CHUNK_PIXELS = 2**21


def flow_warp(
    x_NCHW: Tensor,
    flow_N2HW: Tensor,
    mode: Literal["bilinear", "nearest4"] = "bilinear",
    padding: Literal["zeros", "border"] = "zeros",
) -> Tensor:
    """Read `x` where the flow points.

    Coordinates are float32; the result has the dtype of `x`.

    Args:
        x_NCHW: the images to read, of the flow's height and width.
        flow_N2HW: displacements from each pixel.
        mode: "bilinear" interpolates. "nearest4" returns the pixels at (floor x, floor y),
            (floor, ceil), (ceil, floor), (ceil, ceil), joined on the channels: `(N, 4C, H, W)`. A
            whole coordinate gives the same pixel twice. No gradient reaches the flow.
        padding: "zeros" reads 0 outside the image; "border" clamps the position ("bilinear" only).
    """
    if mode == "nearest4":
        return _four_neighbours(x_NCHW, flow_N2HW.float())
    warped = grid_sample(x_NCHW.float(), flow_grid(flow_N2HW), padding)
    return warped.to(x_NCHW.dtype)


def flow_grid(flow_N2HW: Tensor) -> Tensor:
    """Where the flow points, as `grid_sample` takes it: x, y, from -1 to 1, `(N, H, W, 2)`."""
    height, width = flow_N2HW.shape[-2:]
    pixels = pixel_places(height, width, flow_N2HW.device)
    return sampling_grid(pixels + flow_N2HW.float().permute(0, 2, 3, 1), height, width)


def _four_neighbours(x_NCHW: Tensor, flow_N2HW: Tensor) -> Tensor:
    count, channels, height, width = x_NCHW.shape
    columns = torch.arange(width, device=x_NCHW.device, dtype=torch.float32)
    rows = torch.arange(height, device=x_NCHW.device, dtype=torch.float32)
    x, y = columns + flow_N2HW[:, 0], rows[:, None] + flow_N2HW[:, 1]
    xs, ys = (x.detach().floor(), x.detach().ceil()), (y.detach().floor(), y.detach().ceil())
    at_x = torch.stack((xs[0], xs[0], xs[1], xs[1]), dim=1)
    at_y = torch.stack((ys[0], ys[1], ys[0], ys[1]), dim=1)
    inside = (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
    index = pixel_index(at_y, height) * width + pixel_index(at_x, width)
    pixels = x_NCHW.flatten(2).gather(2, index.view(count, 1, -1).expand(-1, channels, -1))
    pixels = pixels.view(count, channels, 4, height, width) * inside[:, None]
    return pixels.transpose(1, 2).flatten(1, 2)


def compose(first_N2HW: Tensor, second_N2HW: Tensor) -> Tensor:
    """Compose the flows from a to b (`first`) and from b to c (`second`) to that from a to c.

    Pixels that leave the image at b keep only the first flow.
    """
    return first_N2HW + flow_warp(second_N2HW, first_N2HW)


class SpyNet(nn.Module):
    """Coarse-to-fine optical flow over six pyramid levels (Ranjan & Black 2017).

    It computes in float32, also under autocast, because positions need the precision.

    Args:
        return_levels: the pyramid levels to return, 0 (1/32 of the size) to 5 (the full size).
        wrapped: name a level's convolutions `0.conv` to `4.conv`, as BasicVSR++'s released files
            do, instead of `0`, `2`, `4`, `6` and `8`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, return_levels: Sequence[int] = (_FINEST,), wrapped: bool = False) -> None:
        super().__init__()
        self.return_levels = tuple(sorted(return_levels, reverse=True))
        self.wrapped = wrapped
        self.basic_module = nn.ModuleList(_Level(wrapped) for _ in range(_FINEST + 1))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, ref_NCHW: Tensor, supp_NCHW: Tensor) -> list[Tensor]:
        """Estimate flows from `ref` to `supp`, RGB in [0, 1] of equal shapes `(N, 3, H, W)`.

        Returns:
            One flow `(N, 2, H // s, W // s)` for each of `return_levels`, the finest first, where
            `s = 2^(5 - level)`.
        """
        pyramid = self._pyramid(torch.cat((ref_NCHW, supp_NCHW)))
        index = torch.arange(2 * len(ref_NCHW), device=ref_NCHW.device)
        ref, supp = index.chunk(2)
        return self._flows(pyramid, ref, supp, ref_NCHW.shape[-2:])

    def both_ways(self, clip_BTCHW: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Estimate flows between neighbouring frames of RGB clips `(B, T, 3, H, W)`, T >= 2.

        Returns:
            `(backward, forward)`, each a list as of `forward()`, but of `(B, T - 1, 2, H', W')`:
            `backward[t]` goes from frame t to frame t + 1, `forward[t]` from t + 1 to t.
        """
        batch, frames = clip_BTCHW.shape[:2]
        pyramid = self._pyramid(clip_BTCHW.flatten(0, 1))
        index = torch.arange(batch * frames, device=clip_BTCHW.device).view(batch, frames)
        early, late = index[:, :-1].flatten(), index[:, 1:].flatten()
        flows = self._flows(
            pyramid, torch.cat((early, late)), torch.cat((late, early)), clip_BTCHW.shape[-2:]
        )
        split = [flow.view(2, batch, frames - 1, *flow.shape[1:]) for flow in flows]
        return [flow[0] for flow in split], [flow[1] for flow in split]

    def _pyramid(self, images: Tensor) -> list[Tensor]:
        """Normalised images at 1/32 to full size, the sides rounded up to multiples of 32."""
        size = [-(-side // 32) * 32 for side in images.shape[-2:]]
        images = images.float()
        if size != list(images.shape[-2:]):
            images = F.interpolate(images, size, mode="bilinear", align_corners=False)
        levels = [(images - self.mean) / self.std]
        for _ in range(_FINEST):
            levels.append(F.avg_pool2d(levels[-1], 2))
        return levels[::-1]

    def _flows(
        self, pyramid: list[Tensor], ref: Tensor, supp: Tensor, size: Sequence[int]
    ) -> list[Tensor]:
        height, width = pyramid[-1].shape[-2:]
        step = max(1, _CHUNK_PIXELS // (height * width))
        with torch.autocast(ref.device.type, enabled=False):
            chunks = [
                self._estimate(pyramid, r, s, size)
                for r, s in zip(torch.split(ref, step), torch.split(supp, step), strict=True)
            ]
        return [torch.cat(level) for level in zip(*chunks, strict=True)]

    def _estimate(
        self, pyramid: list[Tensor], ref: Tensor, supp: Tensor, size: Sequence[int]
    ) -> list[Tensor]:
        height, width = size
        flows: list[Tensor] = []
        for level, (images, network) in enumerate(zip(pyramid, self.basic_module, strict=True)):
            moved = images[supp]
            if level == 0:
                # The flow starts at zero: nothing to enlarge or to warp.
                up = moved.new_zeros(len(moved), 2, *moved.shape[-2:])
            else:
                up = 2.0 * F.interpolate(
                    flows[-1], scale_factor=2, mode="bilinear", align_corners=True
                )
                moved = flow_warp(moved, up, padding="border")
            flows.append(network(torch.cat((images[ref], moved, up), dim=1)) + up)
        scales = [2 ** (_FINEST - level) for level in self.return_levels]
        return [
            _resize_flow(flows[level], height // s, width // s)
            for level, s in zip(self.return_levels, scales, strict=True)
        ]


class _Level(nn.Module):
    """One pyramid level: maps reference, warped image and enlarged flow to a residual flow."""

    def __init__(self, wrapped: bool) -> None:
        super().__init__()
        widths = (8, 32, 64, 32, 16, 2)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, kernel_size=7, padding=3), nn.ReLU()]
        if wrapped:
            pairs = zip(layers[::2], [*layers[1:-1:2], nn.Identity()], strict=True)
            layers = [
                nn.Sequential(OrderedDict(conv=conv, activate=activate)) for conv, activate in pairs
            ]
        else:
            layers.pop()
        self.basic_module = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.basic_module(x)
        return residual


def _resize_flow(flow: Tensor, height: int, width: int) -> Tensor:
    """Resize a flow; its values are in pixels of the new size."""
    old_height, old_width = flow.shape[-2:]
    if (old_height, old_width) == (height, width):
        return flow
    flow = F.interpolate(flow, (height, width), mode="bilinear", align_corners=False)
    # Numbers, not a tensor, which would be copied to the device.
    return torch.stack(
        (flow[:, 0] * (width / old_width), flow[:, 1] * (height / old_height)), dim=1
    )


def load_flow_weights(module: nn.Module, path: str | Path) -> None:
    """Load the released SpyNet weights: 60 tensors under the key `params`, or bare.

    Either of the two forms of names that released files have fits any network.

    Args:
        module: a `SpyNet`, or a network that holds one as `spynet`.
        path: the file. The constants `mean` and `std` may be missing.

    Raises:
        UserError: the file cannot be read, or its tensors are not SpyNet's. The message names the
            first that is missing, of another shape, or unexpected.
    """
    spynet = module if isinstance(module, SpyNet) else getattr(module, "spynet", None)
    if not isinstance(spynet, SpyNet):
        raise UserError(f"model.flow_weights: {type(module).__name__} estimates no flow")
    try:
        tensors, _ = read_tensors(Path(path))
        tensors = {flow_name(name, spynet.wrapped): value for name, value in tensors.items()}
        load_tensors(spynet, tensors, Path(path), optional=("mean", "std"))
    except UserError as error:
        raise UserError(f"model.flow_weights: {error}") from None
