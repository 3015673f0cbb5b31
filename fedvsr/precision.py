"""The precision that networks compute in; weights, losses and optimiser states stay float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "tf32", "bf16", "fp16"]


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context to call a network in: matrix products and convolutions in `precision`."""
    import torch

    halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = halves.get(precision, torch.float32)
    return torch.autocast(device.type, dtype, enabled=precision in halves)


@contextmanager
def products(precision: Precision) -> Iterator[None]:
    """The context of forward and backward passes: with "tf32", a GPU rounds factors to TF32."""
    import torch

    if precision != "tf32" or not torch.cuda.is_available():
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
