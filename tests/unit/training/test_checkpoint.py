from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedvsr.errors import UserError
from fedvsr.files import replacing
from fedvsr.params import ParamTable
from fedvsr.training import checkpoint

PARAMS = np.arange(5, dtype=np.float32)
TABLE = ParamTable(("a", "b"), ((2,), (1, 3)))


def saved(round_idx: int) -> checkpoint.Saved:
    return checkpoint.Saved(round_idx, {"params": PARAMS * round_idx}, {2: 1}, {2: 0.5})


def test_the_newest_is_read_and_old_ones_are_removed(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path, TABLE, "h") == checkpoint.Newest(None)
    for round_idx in range(1, 12):
        checkpoint.save(tmp_path, saved(round_idx), TABLE, "h")
    state = checkpoint.latest(tmp_path, TABLE, "h").state
    assert state is not None
    assert state.round_idx == 11
    np.testing.assert_array_equal(state.server["params"], PARAMS * 11)
    assert (state.clients, state.losses) == ({2: 1}, {2: 0.5})
    assert len(list(tmp_path.iterdir())) == 2


def test_a_truncated_file_falls_back_to_the_one_before(tmp_path: Path) -> None:
    for round_idx in (1, 2):
        checkpoint.save(tmp_path, saved(round_idx), TABLE, "h")
    newest = sorted(tmp_path.iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-3])
    newest_readable = checkpoint.latest(tmp_path, TABLE, "h")
    assert newest_readable.state is not None
    assert newest_readable.state.round_idx == 1
    (message,) = newest_readable.damaged
    assert message.startswith(f"{newest} is damaged (")
    (tmp_path / "round-000001.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint can be read: .*round-000002"):
        checkpoint.latest(tmp_path, TABLE, "h")


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, saved(1), TABLE, "h")
    with pytest.raises(UserError, match="another configuration"):
        checkpoint.latest(tmp_path, TABLE, "other")
    changed = ParamTable(("a", "c"), TABLE.shapes)
    with pytest.raises(UserError, match=r"tensor 1 is b \[1, 3\] there and c \[1, 3\] in the"):
        checkpoint.latest(tmp_path, changed, "h")


def test_replacing_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as aside:
            aside.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    with replacing(path) as aside:
        aside.write_text("new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
