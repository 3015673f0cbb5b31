"""Operations of a training step on the path of a GPU: the host starts a kernel for most of them.

Counted on the meta device, which computes nothing. A count is no time, but where the host is the
limit a step takes at least as long as it takes to start its kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedvsr import models
from tests.unit.models.fused import on_the_gpu_path

pytest.importorskip("triton", reason="Triton is not installed")

_NO_KERNEL = ("detach", "empty", "empty_like", "new_empty", "new_empty_strided", "_unsafe_view")


class Operations(TorchDispatchMode):
    """Counts operations that start kernels, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        function: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.look(function, args)
        return function(*args, **(kwargs or {}))

    def look(self, function: Any, args: Sequence[Any]) -> None:
        """Count an operation."""
        name = function._schema.name.partition("::")[2]
        returns = function._schema.returns
        is_view = all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if name not in _NO_KERNEL and not (returns and is_view):
            self.counts[name] += 1


def count_step(name: str, frames: int) -> Counter[str]:
    """Operations of forward and backward through a network of the paper's size."""
    config = import_module(f"fedvsr.models.{name}").Config(checkpointing="none")
    with torch.device("meta"):
        network = models.build_fresh(config).train()
        clip = torch.empty(1, frames, 3, 64, 64)
    operations = Operations()

    with (
        on_the_gpu_path(),
        # The meta device has no autocast; on a GPU it is switched off here, not on.
        mock.patch.object(torch, "autocast", return_value=nullcontext()),
        operations,
    ):
        network(clip).sum().backward()
    return operations.counts


# Bounds are what was counted, plus a twentieth.
@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "frames", "most", "kernels"),
    [
        ("rvrt", 4, 2_140, ("window_attention", "guided_attention")),
        ("vrt", 6, 5_980, ("window_attention",)),
        ("iart", 3, 8_830, ("window_attention",)),
        ("basicvsrpp", 5, 3_070, ()),
    ],
)
def test_a_step_takes_few_operations(name, frames, most, kernels):
    counts = count_step(name, frames)
    for kernel in kernels:
        assert counts[kernel] == counts[f"{kernel}_backward"] > 0
    # Windows are cut in the kernels.
    assert counts["_scaled_dot_product_efficient_attention"] == counts["index_put"] == 0
    assert counts.total() <= most, counts.most_common(20)


class Conversions(Operations):
    """Counts conversions to another dtype, by shape."""

    def look(self, function: Any, args: Sequence[Any]) -> None:
        """Count a conversion."""
        if function._schema.name == "aten::_to_copy":
            self.counts[tuple(args[0].shape)] += 1


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [("rvrt", "attention"), ("iart", "blocks"), ("basicvsrpp", "none")],
)
def test_autocast_converts_weights_as_often_for_more_frames(name, checkpointing):
    network = models.build(name, size="demo", checkpointing=checkpointing).train()
    weights = {p.shape for p in network.parameters()}
    converted = []
    for frames in (4, 6):
        with Conversions() as conversions:
            with torch.autocast("cpu", torch.bfloat16):
                sr = network(torch.rand(1, frames, 3, 32, 32))
            sr.float().sum().backward()
        converted.append({s: n for s, n in conversions.counts.items() if s in weights})
    assert converted[0] == converted[1]
