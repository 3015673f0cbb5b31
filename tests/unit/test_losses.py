from __future__ import annotations

import math

import pytest
import torch

from fedvsr.errors import UserError
from fedvsr.losses import charbonnier, high_frequency


def test_charbonnier_by_hand() -> None:
    sr, gt = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 0.0])
    # sqrt(9 + 7) = 4 and sqrt(0 + 7).
    assert charbonnier(sr, gt, eps=7.0).item() == pytest.approx((4 + math.sqrt(7)) / 2)
    assert charbonnier(sr, gt, 7.0, "sum").item() == pytest.approx(4 + math.sqrt(7))


def test_high_frequency_by_hand() -> None:
    # One 2 x 2 block [[a, b], [c, d]] of differences, Haar: LH = (a - b + c - d) / 2,
    # HL = (a + b - c - d) / 2, HH = (a - b - c + d) / 2 = 1.5, 4.5, 0.5 up to sign.
    d = torch.tensor([[6.0, 4.0], [1.0, 0.0]]).expand(1, 1, 1, 2, 2)
    zero = torch.zeros_like(d)
    mean = (1.5 + 4.5 + 0.5) / 3
    assert high_frequency(d, zero, eps=0).item() == pytest.approx(mean)
    assert high_frequency(d, zero, eps=0, reduction="sum").item() == pytest.approx(3 * mean)


def test_3d_sees_flicker_that_2d_does_not() -> None:
    # Frames that are flat but alternate: no spatial detail, all of it temporal.
    flicker = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1, 1).expand(1, 2, 3, 4, 4)
    zero = torch.zeros_like(flicker)
    assert high_frequency(flicker, zero, "2d", eps=0).item() == pytest.approx(0, abs=1e-7)
    # Only the band high in time is not 0: (1 + 1) / sqrt(2) * sqrt(2)^2 = 2 sqrt(2), one of seven.
    expected = 2 * math.sqrt(2) / 7
    assert high_frequency(flicker, zero, "3d", eps=0).item() == pytest.approx(expected)
    with pytest.raises(UserError, match="at least 2 frames"):
        high_frequency(flicker[:, :1], zero[:, :1], "3d")


def test_half_precision_keeps_the_gradient_finite() -> None:
    sr = torch.zeros(1, 2, 3, 4, 4, dtype=torch.float16, requires_grad=True)
    loss = charbonnier(sr, torch.zeros_like(sr)) + high_frequency(sr, torch.zeros_like(sr))
    loss.backward()
    assert sr.grad is not None
    assert torch.isfinite(sr.grad).all()
