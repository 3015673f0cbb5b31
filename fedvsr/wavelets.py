"""One level of the discrete wavelet transform, by strided sums, differentiable.

Filters and boundary rule (half-sample symmetric) are those of PyWavelets, so `pywt.dwt2` and
`pywt.dwtn` are the reference for every orthogonal wavelet.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from fedvsr.errors import UserError
from fedvsr.mirror import mirrored

if TYPE_CHECKING:
    from torch import Tensor


@lru_cache(maxsize=16)
def filters(wavelet: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Low-pass and high-pass decomposition taps of an orthogonal wavelet, e.g. "haar" or "db2".

    Raises:
        UserError: PyWavelets has no orthogonal wavelet of that name.
    """
    import pywt

    try:
        wave = pywt.Wavelet(wavelet)
    except (ValueError, TypeError):
        # TypeError: an empty name.
        wave = None
    if wave is None or not wave.orthogonal:
        raise UserError(
            f"{wavelet!r} is not an orthogonal wavelet of PyWavelets (haar, db2, sym4, coif1, ...)"
        )
    return tuple(wave.dec_lo), tuple(wave.dec_hi)


def detail_bands(x: Tensor, num_axes: int, wavelet: str = "haar") -> list[Tensor]:
    """Detail coefficients of `x` over its last `num_axes` axes: all bands but the all-low one.

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
    all_low = x
    details: list[Tensor] = []
    for axis in range(-num_axes, 0):
        halves = [half for band in details for half in _filter(band, axis, low_taps, high_taps)]
        if axis < -1:
            all_low, high = _filter(all_low, axis, low_taps, high_taps)
        else:  # Nobody needs the all-low band, so its last filter is left out.
            (high,) = _filter(all_low, axis, high_taps)
        details = [high, *halves]
    return details


def _filter(x: Tensor, axis: int, *filters: tuple[float, ...]) -> list[Tensor]:
    """For each filter f: `out[k] = sum_j f[j] * x[2k + 1 - j]` along `axis`."""
    import torch

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
            out = out.add(phase, alpha=tap)
        outputs.append(out)
    return outputs


def _every_second(x: Tensor, axis: int, start: int, num_out: int) -> Tensor:
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, start + 2 * num_out - 1, 2)
    return x[tuple(index)]
