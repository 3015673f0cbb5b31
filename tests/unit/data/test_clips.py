from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedvsr.data import store as store_module
from fedvsr.data.clips import Clip, checksum, write_clip
from fedvsr.data.inspection import fingerprint
from fedvsr.data.store import open_store, read_store, write_manifest
from fedvsr.errors import UserError
from tests.unit.data.clips import write_store
from tests.unit.data.trees import reduced, texture


def test_a_manifest_describes_its_store(tmp_path: Path) -> None:
    gt = texture(0)
    low = reduced(gt) // 2
    made = write_clip(tmp_path, "a", "grass", ((frame, None) for frame in gt), 4, "bi")
    published = write_clip(tmp_path, "b", "grass", zip(gt, low, strict=True), 4, "bi")
    assert open_store(tmp_path) is None, "it has no manifest yet"
    write_manifest(tmp_path, [made, published], "folder", "bi", {"scale": 4}, ["a note"])
    store = open_store(tmp_path)
    assert store is not None
    assert (store.format, store.source, store.degradation) == (2, "folder", "bi")
    assert (store.request, store.notes) == ({"scale": 4}, ("a note",))
    a, b = store.clips
    assert a == Clip("a", "grass", str(tmp_path), 3, 16, 24, 4, a.sha256)
    assert a.sha256 == b.sha256 == hashlib.sha256(gt.tobytes()).hexdigest() == checksum(a.gt())
    np.testing.assert_array_equal(a.lq(), reduced(gt))
    np.testing.assert_array_equal(b.lq(), low)
    assert store.lq_sha256["b"] == hashlib.sha256(low.tobytes()).hexdigest()
    assert isinstance(a.gt(), np.memmap)
    assert read_store(tmp_path) == [a, b]


def test_files_are_what_numpy_writes(tmp_path: Path) -> None:
    # With 10 frames the final header has more digits than the first one, which is for 0 frames.
    gt = texture(1, 10)
    write_clip(tmp_path, "a", "", ((frame, None) for frame in gt), 4, "bi")
    np.save(tmp_path / "numpy.npy", gt)
    assert (tmp_path / "a_gt.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_gt.npy", "a_lq.npy", "numpy.npy"]


def test_format_1_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a_gt.npy", texture(0))
    entry = {"clip_id": "a", "label": "v", "num_frames": 3, "height": 16, "width": 24, "scale": 4}
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "clips": [entry]}))
    (clip,) = read_store(tmp_path) or []
    assert clip.sha256 == ""
    assert clip.gt().shape == (3, 16, 24, 3)


def test_folders_that_are_not_stores(tmp_path: Path) -> None:
    assert read_store(tmp_path) is None
    path = tmp_path / "manifest.json"
    path.write_text('{"format": 4, "clips": []}')
    with pytest.raises(
        UserError, match="has store format 4, which this version cannot read; delete it"
    ):
        read_store(tmp_path)
    for damaged in ('{"format": 2', "[]", '{"format": 2}', '{"format": 2, "clips": [{}]}'):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"manifest\.json is .*; delete"):
            read_store(tmp_path)


def test_given_frames_must_fit(tmp_path: Path) -> None:
    gt = texture(0)
    pairs = zip(gt, reduced(gt, 2), strict=True)
    with pytest.raises(UserError, match=r"24 x 16 pixels and 12 x 8 at low.*x4 needs 6 x 4"):
        write_clip(tmp_path, "a", "", pairs, 4, "bi")
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (clip,) = write_store(tmp_path / "s", {"a": texture(0)})
    path = tmp_path / "s" / "a_gt.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"a_gt\.npy is damaged"):
        clip.gt()


def test_a_store_of_many_clips_has_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"num_frames": 9, "height": 32, "width": 48, "scale": 4}
    entries = [
        {"clip_id": f"c{i}", "label": f"l{i % 2}", "sha256": f"{i:064x}", "lq_sha256": f"{i}"}
        | sizes
        for i in range(5)
    ]
    clips, digests = list[list[Clip]](), set[str]()
    for name, most in (("listed", 5), ("indexed", 4)):
        monkeypatch.setattr(store_module, "_MOST_IN_MANIFEST", most)
        folder = tmp_path / name
        folder.mkdir()
        write_manifest(folder, entries, "folder", "bd", {"clip_frames": 9})
        store = open_store(folder)
        assert store is not None
        assert (folder / "clips.parquet").exists() == (name == "indexed")
        assert store.lq_sha256 == {f"c{i}": f"{i}" for i in range(5)}
        digests.add(fingerprint(store))
        clips.append([replace(clip, folder="") for clip in store.clips])
    assert clips[0] == clips[1]
    assert len(digests) == 1
    assert clips[1][3] == Clip("c3", "l1", "", 9, 32, 48, 4, f"{3:064x}", True, "bd")
    index = folder / "clips.parquet"
    data = bytearray(index.read_bytes())
    data[len(data) // 3] ^= 1
    index.write_bytes(data)
    with pytest.raises(UserError, match=r"clips\.parquet is damaged.*; delete .*indexed and prep"):
        open_store(folder)
    index.unlink()
    with pytest.raises(UserError, match=r"clips\.parquet is missing; delete .*indexed and prepare"):
        open_store(folder)
    write_manifest(folder, entries, "folder", "bd", {})
    (tmp_path / "other").mkdir()
    write_manifest(tmp_path / "other", entries * 2, "folder", "bd", {})
    (tmp_path / "other" / "clips.parquet").rename(index)
    with pytest.raises(UserError, match=r"lists 10 clips, and .*manifest\.json has 5; delete"):
        open_store(folder)
