"""Runs in one file: the same bytes come back, and nothing that is not whole and plain."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedvsr import stream
from fedvsr.checksum import EMPTY
from fedvsr.cli import app
from fedvsr.errors import UserError
from fedvsr.labels import add_tags
from fedvsr.records import run_folders
from fedvsr.run_names import find_folder
from fedvsr.runs import archive
from fedvsr.runs.events import RoundRecorded
from fedvsr.runs.run import locked
from tests.integration.equality import assert_equal_runs
from tests.unit.report.synthetic import write_run

Change = Callable[[bytes], bytes]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    out = tmp_path / "results"
    for second, name in enumerate(("first", "second")):
        folder = write_run(out, name, status="finished" if name == "first" else "interrupted")
        (folder / "config.yaml").write_text(f"name: {name}\n")
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "round-1.safetensors").write_bytes(b"state")
        (folder / ".hidden").touch()
        os.utime(folder / "config.yaml", (1_700_000_000 + second, 1_700_000_000 + second))
    add_tags(out / "first", ["paper"])
    return out


def fedvsr(*words: object) -> str:
    done = CliRunner().invoke(app, list(map(str, words)))
    if done.exception:
        raise done.exception
    return done.stdout


def digests(folder: Path, checkpoints: bool = True) -> dict[str, str]:
    """The SHA-256 of each visible file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in names.items()
        if not path.name.startswith(".") and (checkpoints or "checkpoints/" not in name)
    }


def test_runs_come_back_with_the_same_bytes(results: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "both.zip", tmp_path / "elsewhere"
    text = fedvsr("archive", "first", "sec", "--checkpoints", "--to", file, "--out", results)
    assert text.startswith(f"{file}: 2 runs, ")
    assert "run folder: " in fedvsr("import", file, "--out", out)
    assert sorted(path.name for path in out.iterdir()) == ["first", "second"]
    assert digests(out) == digests(results)
    # The run that was started last, in both places.
    assert find_folder("latest", out).name == find_folder("latest", results).name == "second"
    again = tmp_path / "again.zip"
    fedvsr("archive", "second", "first", "--checkpoints", "--to", again, "--out", out)
    assert again.read_bytes() == file.read_bytes()


def test_checkpoints_are_kept_if_asked_for(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "resumed" not in fedvsr("archive", "first")
    text = fedvsr("archive", "second")
    assert "second is interrupted, and cannot be resumed from the file, which lacks its ch" in text
    fedvsr("import", "second.zip", "--out", "elsewhere")
    assert digests(tmp_path / "elsewhere") == {
        f"second/{name}": digest for name, digest in digests(results / "second", False).items()
    }


def test_any_program_can_look_inside(results: Path, tmp_path: Path) -> None:
    file = tmp_path / "first.zip"
    fedvsr("archive", "first", "--to", file, "--out", results)
    with zipfile.ZipFile(file) as zipped:
        assert zipped.read("first/config.yaml") == b"name: first\n"
        assert zipped.testzip() is None


def test_what_is_not_archived(results: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    with locked(results / "first"), pytest.raises(UserError, match="another process is writing"):
        fedvsr("archive", "first", "--to", file, "--out", results)
    with pytest.raises(UserError, match="name the file for several runs"):
        fedvsr("archive", "first", "second", "--out", results)
    copy = shutil.copytree(results / "first", tmp_path / "first")
    with pytest.raises(UserError, match="two runs are named first"):
        fedvsr("archive", "first", copy, "--to", file, "--out", results)
    (results / "first" / "link.png").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match=r"link\.png is a link"):
        fedvsr("archive", "first", "--to", file, "--out", results)
    assert not file.exists()
    file.touch()
    with pytest.raises(UserError, match="give --overwrite"):
        fedvsr("archive", "second", "--to", file, "--out", results)
    fedvsr("archive", "second", "--to", file, "--overwrite", "--out", results)
    assert file.stat().st_size


@pytest.fixture
def file(results: Path, tmp_path: Path) -> Path:
    path = tmp_path / "both.zip"
    archive.write_archive([results / "first", results / "second"], path)
    return path


def refused(file: Path, out: Path) -> str:
    """The message with which an import is refused, after a check that nothing has appeared."""
    before = sorted(out.rglob("*"))
    with pytest.raises(UserError) as caught:
        fedvsr("import", file, "--out", out)
    assert sorted(out.rglob("*")) == before
    message = str(caught.value)
    assert "\n" not in message
    return message


def flipped(place: float) -> Change:
    def change(data: bytes) -> bytes:
        at = int(place * (len(data) - 1))
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return change


@pytest.mark.parametrize(
    "change",
    [
        *map(flipped, (0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.999, 1)),
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:100],
        lambda _: b"",
        lambda data: data + b"\n",
        lambda data: data[len(data) // 2 :],
    ],
)
def test_a_file_that_changed_is_refused(change: Change, file: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    file.write_bytes(change(file.read_bytes()))
    message = refused(file, tmp_path / "out")
    assert "is no archive of `fedvsr archive`, or is cut short" in message or "SHA-256" in message


def test_one_existing_run_imports_none(file: Path, results: Path, tmp_path: Path) -> None:
    shutil.rmtree(results / "first")
    assert refused(file, results).startswith(f"{results / 'second'} exists already")


def forged(path: Path, entries: dict[str, bytes], mode: int = stat.S_IFREG | 0o644) -> Path:
    """A file with a valid checksum, whatever is in it."""
    with zipfile.ZipFile(path, "w") as zipped:
        for name, data in {"run/config.yaml": b"", **entries}.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode if name in entries else stat.S_IFREG) << 16
            zipped.writestr(info, data)
        zipped.comment = EMPTY
    archive._fill_in(path)
    return path


NO_FILE = "which is not a file of a run"


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/x", "../x", "run/../../x", "run/./x", "run//x", "run\\..\\x", ".x/a", "x"),
        *("run/sub/", "run/\x1b[2J"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert NO_FILE in refused(forged(tmp_path / "a.zip", {name: b"x"}), tmp_path / "out")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO])
def test_links_and_devices_are_refused(kind: int, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    path = forged(tmp_path / "a.zip", {"run/x": b"/etc/hostname"}, kind | 0o644)
    assert NO_FILE in refused(path, tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    nested = forged(tmp_path / "a.zip", {"run/a": b"", "run/a/b/c": b""})
    assert "two files of one name" in refused(nested, tmp_path / "out")
    with zipfile.ZipFile(nested, "a") as zipped:
        zipped.writestr("run/config.yaml", b"")
        zipped.comment = EMPTY
    archive._fill_in(nested)
    assert "two files of one name" in refused(nested, tmp_path / "out")


def test_what_unpacks_to_more_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("run/config.yaml", bytes(10_000_000))
        zipped.comment = EMPTY
    archive._fill_in(path)
    assert "is packed by another program" in refused(path, out)
    # One entry's bytes, named by many entries of the directory.
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("run/config.yaml", bytes(10_000))
        (info,) = zipped.infolist()
        for i in range(100):
            twin = zipfile.ZipInfo(f"run/{i}")
            for name in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(twin, name, getattr(info, name))
            zipped.filelist.append(twin)
        zipped.comment = EMPTY
    archive._fill_in(path)
    assert "unpacks to more than it holds" in refused(path, out)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    path = forged(tmp_path / "a.zip", {"other/runs.parquet": b""})
    assert "holds other without its config.yaml" in refused(path, tmp_path / "out")
    assert "cannot be read" in refused(tmp_path / "missing.zip", tmp_path / "out")


def test_a_run_on_its_way_here_is_not_seen(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "out", list[Path]()

    def killed(*_: object) -> list[Path]:
        seen.extend(out.rglob("runs.parquet"))
        assert run_folders(out) == []
        raise KeyboardInterrupt

    monkeypatch.setattr(archive, "_appear", killed)
    with pytest.raises(KeyboardInterrupt):
        archive.read_archive(file, out)
    assert len(seen) == 2
    assert list(out.iterdir()) == []
    # One that a killed process has left is removed by the next import.
    (out / ".import.999999999.tmp" / "first").mkdir(parents=True)
    monkeypatch.undo()
    assert len(archive.read_archive(file, out)) == 2
    assert sorted(path.name for path in out.iterdir()) == ["first", "second"]


@pytest.mark.full
def test_a_run_with_its_checkpoints_continues_elsewhere(
    small_yaml: Path, undisturbed: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for event in stream(small_yaml, executor="serial", out=here):
        if isinstance(event, RoundRecorded) and event.round_idx == 1:
            break
    (folder,) = here.iterdir()
    archive.write_archive([folder], tmp_path / "a.zip", checkpoints=True)
    archive.read_archive(tmp_path / "a.zip", there)
    rest = list(stream(small_yaml, executor="serial", out=there, resume=True))
    assert [e.round_idx for e in rest if isinstance(e, RoundRecorded)][-2:] == [2, 3]
    assert_equal_runs(undisturbed, there / folder.name)
