from __future__ import annotations

from unittest.mock import MagicMock

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError

from fedvsr.federation import driver


@pytest.mark.parametrize("error", [ActorDiedError(), OutOfMemoryError("the node is out of memory")])
def test_a_driver_that_ray_killed_is_restarted_as_often_as_allowed(
    error: RayError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray names a process that it killed for lack of memory by an error of its own."""
    placement = MagicMock()
    monkeypatch.setattr(driver.ray, "remote", MagicMock())
    monkeypatch.setattr(driver.ray, "kill", MagicMock())
    monkeypatch.setattr(driver.ray, "get", MagicMock(side_effect=["one", error, "two", None]))
    assert list(driver.drive(MagicMock(), placement, max_restarts=1)) == ["one", "two"]
    monkeypatch.setattr(driver.ray, "get", MagicMock(side_effect=["one", error]))
    with pytest.raises(type(error)):
        list(driver.drive(MagicMock(), placement, max_restarts=0))
