from __future__ import annotations

from concurrent.futures import Future
from typing import Any
from unittest.mock import MagicMock

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError

from fedvsr.federation import driver


def answering(*answers: Any) -> MagicMock:
    """Stands in for `ray.remote`: an actor whose calls of `next_event` end in these answers."""
    futures = []
    for answer in answers:
        futures.append(Future[Any]())
        if isinstance(answer, Exception):
            futures[-1].set_exception(answer)
        else:
            futures[-1].set_result(answer)
    actor = MagicMock()
    actor.next_event.remote.return_value.future.side_effect = futures
    remote = MagicMock()
    remote.return_value.return_value.options.return_value.remote.return_value = actor
    return remote


@pytest.mark.parametrize("error", [ActorDiedError(), OutOfMemoryError("the node is out of memory")])
def test_a_driver_that_ray_killed_is_restarted_as_often_as_allowed(
    error: RayError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray names a process that it killed for lack of memory by an error of its own."""
    placement = MagicMock()
    monkeypatch.setattr(driver, "here", lambda: "node")
    monkeypatch.setattr("fedvsr.federation.pulse.ray", MagicMock())
    monkeypatch.setattr(driver.ray, "remote", answering("one", error, "two", None))
    assert list(driver.drive(MagicMock(), placement, max_restarts=1)) == ["one", "two"]
    monkeypatch.setattr(driver.ray, "remote", answering("one", error))
    with pytest.raises(type(error)):
        list(driver.drive(MagicMock(), placement, max_restarts=0))
