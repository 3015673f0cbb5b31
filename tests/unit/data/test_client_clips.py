from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fedvsr.data import client_clips
from fedvsr.data.client_clips import ClientClips, ClipTable, label_counts
from fedvsr.data.clips import Clip
from fedvsr.data.owned_clip import OwnedClip
from fedvsr.data.split import Split


def clip(i: int) -> Clip:
    return Clip(f"c{i}", f"l{i % 3}", "/store", i + 1, 32, 48, 4, f"{i:064x}", i % 2 == 0)


OWNED = OwnedClip("a-0003", "a", "", 9, 32, 48, 4, stores=("/a/one", "/a/two"), number=3)
CLIENTS = [(clip(0),), (clip(4), clip(2), clip(1)), (), (OWNED,)]


@pytest.mark.parametrize("mapped", [False, True])
def test_a_clients_clips_are_those_that_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    monkeypatch.setattr(client_clips, "_BLOCK", 2)
    table = ClientClips.of(CLIENTS)
    if mapped:
        monkeypatch.setattr(client_clips, "_MAPPED_BYTES", 0)
        table.move_to_disk(tmp_path)
        assert list(tmp_path.iterdir()) == [], "the file is gone with its process"
    assert list(table) == CLIENTS
    assert table == CLIENTS
    assert table[-1] == (OWNED,)
    assert table[1:3] == (CLIENTS[1], ())
    assert len(table) == 4
    with pytest.raises(IndexError):
        table[4]
    assert table.counts.tolist() == [1, 3, 0, 1]
    assert table.sizes.tolist() == [1, 5 + 3 + 2, 0, 9]
    assert table.sizes.dtype == np.int64
    rows = table.rows()
    assert rows["client_id"].to_pylist() == [0, 1, 1, 1, 3]
    assert rows["clip_id"].to_pylist() == ["c0", "c4", "c2", "c1", "a-0003"]
    labels, counts = label_counts(table)
    assert labels == ["a", "l0", "l1", "l2"]
    assert counts.tolist() == [[0, 0, 0, 1], [1, 0, 0, 0], [0, 2, 0, 0], [0, 1, 0, 0]]
    # To a driver on another machine.
    assert pickle.loads(pickle.dumps(table)) == CLIENTS


def test_a_mapped_table_takes_no_memory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_clips, "_MAPPED_BYTES", 0)
    table = ClientClips.of([(clip(i),) for i in range(5000)])
    taken = table.clips.table.nbytes
    before = pa.total_allocated_bytes()
    table.move_to_disk(tmp_path)
    assert before - pa.total_allocated_bytes() > 0.95 * taken
    assert table[4321] == (clip(4321),)


def test_a_split_holds_tables_and_reads_as_tuples() -> None:
    clips = tuple(clip(i) for i in range(5))
    dealt = (clips[3:], (), clips[:3])
    split = Split(dealt, (clip(9),), (), order=np.array([2, 3, 4, 0, 1]))
    assert isinstance(split.train, ClipTable)
    assert split.clients == dealt
    assert tuple(Split(dealt, (), ()).train) == clips[3:] + clips[:3]
    assert isinstance(split.clients, ClientClips)
    assert tuple(split.train) == clips
    assert split.train[1:3] == clips[1:3]
    assert split.train[-1] == clips[-1]
    assert not ClipTable.of([])
