from __future__ import annotations

from collections.abc import Iterator

import pytest

from fedvsr.federation import driver


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A real Ray on this machine, for all tests of a file."""
    driver.connect("local", 128 << 20)
    yield
    driver.disconnect()
