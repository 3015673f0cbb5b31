from __future__ import annotations

import numpy as np
import pytest
import pywt
import torch

from fedvsr.errors import UserError
from fedvsr.wavelets import detail_bands, filters


@pytest.mark.parametrize("wavelet", ["haar", "db2", "db4", "sym4", "coif1"])
@pytest.mark.parametrize("shape", [(8, 12), (7, 9), (5, 16), (2, 3)])
def test_2d_equals_pywt(wavelet: str, shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal((2, *shape))
    _, (horizontal, vertical, diagonal) = pywt.dwt2(x, wavelet, axes=(-2, -1))
    low_high, high_low, high_high = detail_bands(torch.from_numpy(x), 2, wavelet)
    np.testing.assert_allclose(low_high, vertical, atol=1e-12)
    np.testing.assert_allclose(high_low, horizontal, atol=1e-12)
    np.testing.assert_allclose(high_high, diagonal, atol=1e-12)


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
@pytest.mark.parametrize("shape", [(4, 6, 8), (5, 7, 6)])
def test_3d_equals_pywt(wavelet: str, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(1).standard_normal(shape)
    expected = pywt.dwtn(x, wavelet)
    bands = detail_bands(torch.from_numpy(x), 3, wavelet)
    names = ["aad", "ada", "add", "daa", "dad", "dda", "ddd"]
    assert len(bands) == len(names)
    for name, band in zip(names, bands, strict=True):
        np.testing.assert_allclose(band, expected[name], atol=1e-12, err_msg=name)


def test_gradient() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: torch.stack(detail_bands(x, 2, "db2")), x)


@pytest.mark.parametrize("name", ["bior2.2", "nonsense"])
def test_only_orthogonal_wavelets(name: str) -> None:
    with pytest.raises(UserError, match="orthogonal"):
        filters(name)
