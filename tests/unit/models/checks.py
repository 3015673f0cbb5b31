"""Checks that several published networks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def gradients(network: nn.Module, lq: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """The output, and the gradients of its mean square by each parameter."""
    sr = network(lq)
    sr.square().mean().backward()
    return sr.detach(), [p.grad for p in network.parameters()]


def check_equal_gradients(
    got: list[Tensor | None], want: list[Tensor | None], rtol: float, atol: float, unused: int = 0
) -> None:
    """Gradients agree; `unused` parameters have none."""
    assert sum(grad is None for grad in want) == unused
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        assert a is None or b is None or torch.allclose(a, b, rtol=rtol, atol=atol)


def kept_bytes(network: nn.Module, lq: Tensor) -> int:
    """Bytes of the storages that autograd keeps for the backward pass."""
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        network(lq)
    return sum(storages.values())


def check_clips_do_not_mix(network: nn.Module, lq_BTCHW: Tensor, atol: float) -> None:
    """A batch gives each clip's own output."""
    with torch.no_grad():
        both = network(lq_BTCHW)
        for clip, sr in zip(lq_BTCHW, both, strict=True):
            assert torch.allclose(network(clip[None])[0], sr, atol=atol)


def check_autocast(network: nn.Module, plain: nn.Module, lq: Tensor, unused: int = 0) -> None:
    """Training under autocast stays near float32, with finite gradients in float32.

    Args:
        network: the network to train under autocast.
        plain: the same network, for float32.
        lq: clips.
        unused: parameters that have no gradient.
    """
    sr, want = gradients(plain, lq)
    assert sum(grad is None for grad in want) == unused
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got_sr = network(lq)
    got_sr.float().square().mean().backward()
    assert (got_sr - sr).norm() / sr.norm() < 0.03
    for p, grad in zip(network.parameters(), want, strict=True):
        assert (p.grad is None) == (grad is None)
        if p.grad is not None:
            assert p.grad.isfinite().all()
            assert p.grad.dtype == torch.float32
