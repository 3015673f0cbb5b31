from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedvsr.errors import UserError
from fedvsr.federation.client_states import ClientStates
from fedvsr.messages import LostError


def state(value: float) -> dict[str, np.ndarray]:
    return {"control": np.full(100, value, np.float32)}


def test_a_small_budget_spills_and_loses_nothing(tmp_path: Path) -> None:
    states = ClientStates(tmp_path, max_bytes=900)
    for client_id in range(5):
        states.put(client_id, 1, state(client_id))
    assert len(list(tmp_path.iterdir())) == 3, "two of 400 bytes fit"
    assert [states.get(i)["control"][0] for i in range(5)] == [0, 1, 2, 3, 4]
    assert states.get(9) == {}


def test_restoring_a_checkpoint(tmp_path: Path) -> None:
    states = ClientStates(tmp_path)
    states.put(0, 1, state(1))
    states.put(1, 1, state(2))
    first = states.save()
    states.clean([first])
    states.put(0, 2, state(3))
    second = states.save()
    states.clean([first, second])
    assert len(list(tmp_path.iterdir())) == 3, "client 1 is not written again"
    restored = ClientStates(tmp_path)
    restored.restore(first)
    assert [restored.get(i)["control"][0] for i in range(2)] == [1, 2]
    restored.restore(second)
    assert [restored.get(i)["control"][0] for i in range(2)] == [3, 2]
    restored.clean([second])
    assert len(list(tmp_path.iterdir())) == 2


def test_states_are_copied(tmp_path: Path) -> None:
    states, vectors = ClientStates(tmp_path), state(1)
    states.put(0, 1, vectors)
    vectors["control"][:] = 7
    assert states.get(0)["control"][0] == 1


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    states = ClientStates(tmp_path)
    states.put(3, 2, state(1))
    states.restore(states.save())
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"the state of client 3 cannot be read: .*client-00003-round"
    ):
        states.get(3)


class Far:
    """A state on another node, until that is gone."""

    nbytes = 400
    gone = False

    def fetch(self) -> dict[str, np.ndarray]:
        if self.gone:
            raise LostError(0, "its node is gone")
        return state(7)


def test_what_lies_elsewhere_stays_there_until_it_is_saved(tmp_path: Path) -> None:
    states, far = ClientStates(tmp_path, max_bytes=900), Far()
    states.put(0, 1, far)
    assert states.find(0) is far
    assert states.need_others
    states.save()
    assert not states.need_others
    assert states.find(0) is far, "a file is no reason to forget where it is"
    far.gone = True
    assert states.get(0)["control"][0] == 7, "the file has it"
    assert isinstance(states.find(0), dict)


def test_memory_elsewhere_counts_and_what_is_lost_unsaved_is_an_error(tmp_path: Path) -> None:
    states, far = ClientStates(tmp_path, max_bytes=900), [Far() for _ in range(3)]
    for client_id in range(3):
        states.put(client_id, 1, far[client_id])
    assert len(list(tmp_path.iterdir())) == 1, "two of 400 bytes fit"
    assert states.find(2) is far[2]
    far[2].gone = True
    with pytest.raises(LostError):
        states.get(2)
    with pytest.raises(LostError):
        states.save()
