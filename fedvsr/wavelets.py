"""One level of the discrete wavelet transform, by strided sums, differentiable.

Filters and boundary rule (half-sample symmetric) are PyWavelets', so `pywt.dwt2` and `pywt.dwtn`
are the reference for every orthogonal wavelet.
"""

from __future__ import annotations

from functools import lru_cache

import pywt
import torch
from torch import Tensor

from fedvsr.errors import UserError
from fedvsr.mirror import mirrored


@lru_cache(maxsize=16)
def filters(wavelet: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Decomposition low-pass and high-pass taps of an orthogonal wavelet, e.g. "haar" or "db2".

    Raises:
        UserError: PyWavelets has no orthogonal wavelet of that name.
    """
    try:
        found = pywt.Wavelet(wavelet)
    except ValueError:
        found = None
    if found is None or not found.orthogonal:
        raise UserError(
            f"{wavelet!r} is not an orthogonal wavelet of PyWavelets (haar, db2, sym4, coif1, ...)"
        )
    return tuple(found.dec_lo), tuple(found.dec_hi)


def detail_bands(x: Tensor, num_axes: int, wavelet: str = "haar") -> list[Tensor]:
    """The detail coefficients of `x` over its last `num_axes` axes: all bands but the all-low one.

    Args:
        x: any real tensor with at least `num_axes` axes.
        num_axes: 2 for frames (bands LH, HL, HH), 3 for clips (seven bands).
        wavelet: name of an orthogonal wavelet.

    Returns:
        `2**num_axes - 1` tensors, for two axes LH, HL, HH (first letter: the vertical filter; the
        paper's text and its Eq. 7 differ on this, its loss does not depend on it). An axis of
        length n becomes `(n + taps - 1) // 2`.
    """
    low_taps, high_taps = filters(wavelet)
    all_low, details = x, list[Tensor]()
    for axis in range(-num_axes, 0):
        split = [half for band in details for half in _filter(band, axis, low_taps, high_taps)]
        if axis < -1:
            all_low, high = _filter(all_low, axis, low_taps, high_taps)
        else:  # The all-low band is not wanted, so its last filter is never run.
            (high,) = _filter(all_low, axis, high_taps)
        details = [high, *split]
    return details


def _filter(x: Tensor, axis: int, *filters: tuple[float, ...]) -> list[Tensor]:
    """For each filter f: `out[k] = sum_j f[j] * x[2k + 1 - j]` along `axis`."""
    taps, n = len(filters[0]), x.shape[axis]
    num_out = (n + taps - 1) // 2
    before, after = taps - 2, 2 * num_out - n
    if before or after:
        positions = mirrored(torch.arange(-before, n + after), n)
        x = x.index_select(axis, positions.to(x.device))
    phases = [_every_second(x, axis, before + 1 - j, num_out) for j in range(taps)]
    outputs = []
    for f in filters:
        out = f[0] * phases[0]
        for tap, phase in zip(f[1:], phases[1:], strict=True):
            out = torch.add(out, phase, alpha=tap)
        outputs.append(out)
    return outputs


def _every_second(x: Tensor, axis: int, start: int, num_out: int) -> Tensor:
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, start + 2 * num_out - 1, 2)
    return x[tuple(index)]
