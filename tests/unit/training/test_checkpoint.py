from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedvsr.checked import write_tensors
from fedvsr.errors import UserError
from fedvsr.federation.client_states import ClientStates
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


@pytest.mark.parametrize("version", [2, 3])
def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path: Path, version: int) -> None:
    metadata = {
        **{"format": version, "round_idx": 4, "config_hash": "h", "clients": [[2, 1]]},
        **{"names": TABLE.names, "shapes": TABLE.shapes},
    }
    tensors = {"params": PARAMS}
    if version == 2:
        metadata["losses"] = [[2, 0.5], [7, 0.25]]
    else:
        tensors[".losses.clients"] = np.array([2, 7])
        tensors[".losses.values"] = np.array([0.5, 0.25])
    write_tensors(tmp_path / "round-000004.safetensors", tensors, metadata)
    state = checkpoint.latest(tmp_path, TABLE, "h").state
    assert state is not None
    assert (state.clients, state.losses) == ({2: 1}, {2: 0.5, 7: 0.25})
    assert list(state.server) == ["params"]
    # The next checkpoint keeps this one, and the clients' files that it refers to.
    kept = checkpoint.save(tmp_path, saved(5), TABLE, "h")
    assert kept == [{2: 1}, {2: 1}]


@pytest.mark.parametrize("kind", ["losses", "clients"])
def test_each_client_costs_two_numbers(tmp_path: Path, kind: str) -> None:
    sizes = list[int]()
    for count in (0, 1000):
        losses = {i: 1 / (i + 3) for i in range(count) if kind == "losses"}
        clients = {i: i % 7 for i in range(count) if kind == "clients"}
        state = checkpoint.Saved(1, {"params": PARAMS}, clients, losses)
        checkpoint.save(tmp_path, state, TABLE, "h")
        sizes.append((tmp_path / "round-000001.safetensors").stat().st_size)
        found = checkpoint.latest(tmp_path, TABLE, "h").state
        assert found is not None
        assert (found.losses, found.clients) == (losses, clients)
    assert sizes[1] - sizes[0] < 16_100


def test_a_truncated_file_falls_back_to_the_one_before(tmp_path: Path) -> None:
    for round_idx in (1, 2):
        checkpoint.save(tmp_path, saved(round_idx), TABLE, "h")
    newest = sorted(tmp_path.iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-3])
    newest_readable = checkpoint.latest(tmp_path, TABLE, "h")
    assert newest_readable.state is not None
    assert newest_readable.state.round_idx == 1
    (message,) = newest_readable.damaged
    assert message.startswith(f"{newest} is damaged: its SHA-256 is not")
    (tmp_path / "round-000001.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint can be read: .*round-000002"):
        checkpoint.latest(tmp_path, TABLE, "h")


def flip(path: Path, position: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << position % 8
    path.write_bytes(data)


def test_a_checkpoint_with_any_changed_bit_falls_back_to_the_one_before(tmp_path: Path) -> None:
    for round_idx in (1, 2):
        checkpoint.save(tmp_path, saved(round_idx), TABLE, "h")
    newest = tmp_path / "round-000002.safetensors"
    whole = newest.read_bytes()
    for position in range(len(whole)):
        flip(newest, position)
        found = checkpoint.latest(tmp_path, TABLE, "h")
        assert found.state is not None
        assert found.state.round_idx == 1, position
        assert len(found.damaged) == 1
        assert str(newest) in found.damaged[0]
        newest.write_bytes(whole)
    # The next one replaces what is damaged.
    flip(newest, 300)
    checkpoint.save(tmp_path, saved(1), TABLE, "h")
    assert [path.name for path in tmp_path.iterdir()] == ["round-000001.safetensors"]


@pytest.mark.parametrize("damage", ["bit", "cut", "gone", "another"])
def test_a_checkpoint_is_passed_over_with_a_damaged_client(tmp_path: Path, damage: str) -> None:
    states = ClientStates(tmp_path)
    for round_idx in (1, 2):
        states.put(2, round_idx, {"control": PARAMS * round_idx})
        state = checkpoint.Saved(round_idx, {"params": PARAMS}, states.save(), {})
        states.clean(checkpoint.save(tmp_path, state, TABLE, "h"))
    newest = tmp_path / "client-00002-round-000002.safetensors"
    before = tmp_path / "client-00002-round-000001.safetensors"
    if damage == "bit":
        flip(newest, len(newest.read_bytes()) - 1)
    elif damage == "cut":
        newest.write_bytes(newest.read_bytes()[:-1])
    elif damage == "gone":
        newest.unlink()
    else:
        newest.write_bytes(before.read_bytes())
    found = checkpoint.latest(tmp_path, TABLE, "h", states.require_readable)
    assert found.state is not None
    assert found.state.round_idx == 1
    assert len(found.damaged) == 1
    assert "round-000002.safetensors cannot be used, because" in found.damaged[0]
    assert str(newest) in found.damaged[0]
    states.restore(found.state.clients)
    np.testing.assert_array_equal(states.get(2)["control"], PARAMS)


def test_metadata_that_is_no_checkpoints_is_damage(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, saved(1), TABLE, "h")
    write_tensors(tmp_path / "round-000002.safetensors", {"params": PARAMS}, {"format": 2})
    found = checkpoint.latest(tmp_path, TABLE, "h")
    assert found.state is not None
    assert found.state.round_idx == 1
    assert "its metadata is not a checkpoint's" in found.damaged[0]


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
