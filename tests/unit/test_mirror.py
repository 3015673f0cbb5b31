from __future__ import annotations

import numpy as np
import pytest
import torch

from fedvsr.mirror import mirrored


@pytest.mark.parametrize("size", [1, 2, 5])
def test_positions_are_those_of_numpys_symmetric_padding(size: int) -> None:
    expected = np.pad(np.arange(size), 13, mode="symmetric").tolist()
    assert [mirrored(position, size) for position in range(-13, size + 13)] == expected
    positions = mirrored(torch.arange(-13, size + 13), size)
    assert positions.dtype == torch.int64
    assert positions.tolist() == expected
