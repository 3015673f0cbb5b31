from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedvsr.data import prepare as preparation
from fedvsr.data.store import open_store
from tests.unit.cli.test_cli import fedvsr
from tests.unit.data import trees
from tests.unit.data.clips import write_pictures


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert fedvsr("data", "--help") == 0
    text = capsys.readouterr().out
    for command in ("prepare", "info", "verify", "preview"):
        assert re.search(rf"\b{command}\b +[A-Z]", text), f"{command} has no help line"
    assert fedvsr("data", "prepare", "--help") == 0
    text = capsys.readouterr().out
    for command in ("reds", "vid4", "kinetics", "folder"):
        assert re.search(rf"\b{command}\b +[A-Z]", text), f"{command} has no help line"


def test_from_the_data_set_to_the_contact_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = trees.vid4(tmp_path / "Vid4")
    out = str(tmp_path / "store")
    command = ("data", "prepare", "vid4", "--source", str(root), "--out", out)
    assert fedvsr(*command) == 0
    text = capsys.readouterr().out
    assert re.search(r"store: 4 clips, 14 frames, x4 bi, 13\.4 kB in \d", text)
    assert "note: " in text
    assert fedvsr(*command) == 0
    assert capsys.readouterr().out == f"{out} exists already: 4 clips\n"

    assert fedvsr("data", "info", out, "--clips") == 0
    text = capsys.readouterr().out
    for line in (
        "source +vid4",
        "clips +4",
        r"frames +14 \(1 of 2, ",
        "1 of 24 x 12",
        "1: 4 of vid4",
    ):
        assert re.search(line, text), line
    checksum = re.findall(r"checksum +([0-9a-f]{64})", text)
    assert len(checksum) == 1
    store = open_store(tmp_path / "store")
    assert store is not None
    assert all(clip.sha256[:16] in text for clip in store.clips)

    assert fedvsr("data", "verify", out) == 0
    assert "4 clips match their checksums" in capsys.readouterr().out

    assert fedvsr("data", "preview", out) == 0
    path = tmp_path / "store-preview.png"
    assert capsys.readouterr().out == f"{path}: 4 of 4 clips\n"
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape[1] == 1920
    # Each cell shows its clip: it is not flat like the background.
    assert all(cell.std() > 20 for cell in np.array_split(pixels[:100], 3, axis=1))


def test_verify_names_every_damaged_clip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = trees.vid4(tmp_path / "Vid4"), tmp_path / "store"
    fedvsr("data", "prepare", "vid4", "--source", str(root), "--out", str(out))
    for name, change in (("city_gt", 1), ("walk_lq", 1), ("calendar_gt", 0)):
        path = out / f"{name}.npy"
        data = bytearray(path.read_bytes())
        data[-5] ^= change
        path.write_bytes(data)
    (out / "foliage_lq.npy").write_bytes(b"")
    capsys.readouterr()
    assert fedvsr("data", "verify", str(out)) == 2
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-3:] == [
        "city: ground truth differs from its checksum",
        f"foliage: {out}/foliage_lq.npy is damaged or not readable; prepare it again",
        "walk: low resolution differs from its checksum",
    ]
    assert printed.err == (
        f"error: 3 of 4 clips of {out} differ from what was prepared; prepare them again\n"
    )


def test_kinetics_lists_the_videos_it_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, table = trees.kinetics(tmp_path / "k", videos=3)
    for path in sorted((root / "train" / "yoga").iterdir())[:1]:
        path.write_bytes(b"no video")
    command = [
        *("data", "prepare", "kinetics", "--source", str(root), "--annotations", str(table)),
        *("--out", str(tmp_path / "out"), "--class", "yoga", "--class", "archery"),
        *("--clips-per-class", "2", "--frames", "4", "--size", "24x16", "--seed", "2"),
    ]
    assert fedvsr(*command) == 0
    text = capsys.readouterr().out
    assert "out: 4 clips, 16 frames, x4 bi" in text
    assert re.search(r"class +video +reason", text)
    assert re.search(r"yoga +-yog_0_000000_000010 +is not a readable video", text)
    assert fedvsr(*command, "--clips-per-class", "3", "--overwrite") == 2
    printed = capsys.readouterr()
    assert re.search(r"yoga +-yog_0_000000_000010 +is not a readable video", printed.out)
    assert printed.err.startswith("error: too few usable videos of 24 x 16 in 1 of 2 classes: ")
    assert fedvsr(*command, "--size", "large") == 2
    assert "--size large is not a size; write e.g. 1280x720" in capsys.readouterr().err


def test_a_mistake_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "in" / "a", trees.texture(0))

    def refused(line: str, *arguments: str) -> None:
        capsys.readouterr()
        assert fedvsr("data", *arguments) == 2
        assert capsys.readouterr().err == f"error: {line}\n"

    root = str(tmp_path)
    for name in ("reds", "vid4", "folder"):
        refused(
            f"there is no folder {root}/no (--source)",
            *("prepare", name, "--source", f"{root}/no", "--out", f"{root}/out"),
        )
    refused(
        f"--out {root}/in/out is inside the data set; choose a folder outside {root}/in",
        *("prepare", "folder", "--source", f"{root}/in", "--out", f"{root}/in/out"),
    )
    refused(f"{root}/in is not a clip store; `fedvsr data prepare` makes one", "info", f"{root}/in")
    (tmp_path / ".in-partial").mkdir()
    refused(
        f"{root}/in is not a clip store; its preparation is unfinished ({root}/.in-partial); "
        "repeat the command to resume it",
        *("verify", f"{root}/in"),
    )
    (tmp_path / ".in-partial").rmdir()
    fedvsr("data", "prepare", "folder", "--source", f"{root}/in", "--out", f"{root}/out")
    refused(
        f"--out {root}/x.jpg is not a .png file in an existing folder",
        *("preview", f"{root}/out", "--out", f"{root}/x.jpg"),
    )
    refused(
        f"--plot {root}/no/x.png is not a .png file in an existing folder",
        *("partition", "demo", "--plot", f"{root}/no/x.png"),
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_an_interrupted_preparation_says_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        write_pictures(tmp_path / "in" / f"c{seed}", trees.texture(seed))
    write = preparation.write_clip

    def stopped(folder: Path, clip_id: str, *how: Any) -> Any:
        if clip_id == "c1":
            os.kill(os.getpid(), signal.SIGTERM)
        return write(folder, clip_id, *how)

    command = [
        *("data", "prepare", "folder", "--source", str(tmp_path / "in")),
        *("--out", str(tmp_path / "out"), "--workers", "1"),
    ]
    with monkeypatch.context() as patched:
        patched.setattr(preparation, "write_clip", stopped)
        assert fedvsr(*command) == 130
    expected = f"stopped; repeat the command to resume {tmp_path}/out\n"
    assert expected in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert fedvsr(*command) == 0
    assert fedvsr("data", "verify", str(tmp_path / "out")) == 0


def test_info_names_clips_of_equal_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        write_pictures(tmp_path / "in" / name, trees.texture(name == "c"))
    out = str(tmp_path / "out")
    fedvsr("data", "prepare", "folder", "--source", str(tmp_path / "in"), "--out", out)
    capsys.readouterr()
    assert fedvsr("data", "info", out) == 0
    assert re.search(r"same content +a, b\n", capsys.readouterr().out)


def test_an_experiments_degradations_are_shown_and_drawn(
    tmp_path: Path, small_yaml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    several = "data.degradation={clean: bi, web: [{step: downscale}, {step: jpeg, quality: 50}]}"
    settings = ("--set", several, "--set", f"data.cache_dir={tmp_path / 'cache'}")
    assert fedvsr("data", "partition", str(small_yaml), *settings) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    (head,) = [row for row in rows if row[:1] == ["client"]]
    assert head[-1] == "degradations"
    kinds = [row[-1] for row in rows if row and row[0] in ("0", "1", "2", "3")]
    assert sorted(kinds) == ["clean", "clean", "web", "web"]

    picture = tmp_path / "degradations.png"
    assert fedvsr("data", "degradations", str(small_yaml), *settings, "--plot", str(picture)) == 0
    text = capsys.readouterr().out
    assert re.search(r"clean +\d+\.\d\d dB +as prepared", text)
    assert re.search(r"web +\d+\.\d\d dB +downscale kernel bicubic *\n +jpeg quality 50", text)
    with Image.open(picture) as drawn:
        assert drawn.width > 600
    assert fedvsr("data", "degradations", str(small_yaml)) == 0
    assert re.search(r"bi +\d+\.\d\d dB +as prepared", capsys.readouterr().out)
