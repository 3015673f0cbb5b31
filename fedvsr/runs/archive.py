"""Runs in one file: a zip file without compression that ends in a SHA-256 of itself.

Equal runs give equal bytes. Each run is a folder in it, so that any program can look inside.
"""

from __future__ import annotations

import mmap
import os
import re
import shutil
import stat
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath

from fedvsr.checksum import EMPTY, digits_of, require_unchanged
from fedvsr.cluster.archive import is_plain_file, run_files
from fedvsr.errors import DamagedError, FileError, UserError
from fedvsr.files import is_other_process, replacing
from fedvsr.runs.run import locked

_BLOCK = 1 << 20
_MODE = stat.S_IFREG | 0o644
# Years that a zip file can hold.
_FIRST, _LAST = (1980, 1, 1, 0, 0, 0), (2107, 12, 31, 23, 59, 58)
# What `zipfile` raises for bytes that are no zip file of its own making.
_NO_ZIP = (
    *(zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError),
    *(struct.error, OverflowError),
)


def write_archive(folders: Sequence[Path], path: Path, checkpoints: bool = False) -> int:
    """Write the folders of runs to one file, and return how many files it holds.

    Hidden files are left out, and `checkpoints/` unless asked for.

    Raises:
        UserError: a process executes one of the runs, one holds a link, or two have one name.
    """
    names = [folder.resolve().name for folder in folders]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two runs are named {twice}; put them into two files")
    count = 0
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(locked(folder))
        with replacing(path) as aside:
            with zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as zipped:
                for name, folder in sorted(zip(names, folders, strict=True)):
                    files = _files(folder, checkpoints)
                    for file in files:
                        _add(zipped, file, f"{name}/{file.relative_to(folder).as_posix()}")
                    count += len(files)
                zipped.comment = EMPTY
            _fill_in(aside)
    return count


def _files(folder: Path, checkpoints: bool) -> list[Path]:
    try:
        return run_files(folder, checkpoints)
    except ValueError as error:
        raise UserError(str(error)) from None


def _add(zipped: zipfile.ZipFile, path: Path, name: str) -> None:
    changed_at = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    info = zipfile.ZipInfo(name, min(max(changed_at.timetuple()[:6], _FIRST), _LAST))
    info.create_system, info.external_attr = 3, _MODE << 16
    with path.open("rb") as source, zipped.open(info, "w", force_zip64=True) as target:
        shutil.copyfileobj(source, target, _BLOCK)


def _fill_in(path: Path) -> None:
    """Put the digits of the checksum into the mark at a file's end."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        where, digits = digits_of(data, len(data) - len(EMPTY))
        data[where] = digits
        data.flush()


def read_archive(path: Path, out: Path) -> list[Path]:
    """Bring the runs of a file of `write_archive` to folders below `out`, and return these.

    Everything is checked before the first folder appears: the file's SHA-256, the names and sizes
    of what is in it, and that `out` has no such run and enough space.

    Raises:
        UserError: it is not the whole file that was written, it holds what no run has, or a run or
            another thing of that name exists.
    """
    _require_whole(path)
    try:
        with zipfile.ZipFile(path) as zipped:
            infos = zipped.infolist()
            runs = _require_runs(infos, path)
            for run in runs:
                if os.path.lexists(out / run):
                    raise UserError(f"{out / run} exists already; import into another --out")
            _require_space(infos, path, out)
            with _aside(out) as aside:
                for info in infos:
                    _extract(zipped, info, aside / info.filename)
                return _appear(runs, aside, out)
    except UserError:
        raise
    except _NO_ZIP as error:
        raise FileError(path, f"is no archive of runs: {error or 'it cannot be read'}") from None


def _require_whole(path: Path) -> None:
    """Check that a file ends in the SHA-256 of its bytes.

    Raises:
        FileError: it cannot be read, or ends in none.
        DamagedError: it ends in another.
    """
    wrong = "is no archive of `fedvsr archive`, or is cut short"
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) <= len(EMPTY):
                raise FileError(path, wrong)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                end = bytes(data[-len(EMPTY) :])
                if not re.fullmatch(EMPTY.replace(b"0" * 64, b"[0-9a-f]{64}"), end):
                    raise FileError(path, wrong)
                require_unchanged(data, path, hint="copy it again")
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from None


def _require_runs(infos: Sequence[zipfile.ZipInfo], path: Path) -> list[str]:
    """Check that a zip file holds folders of runs alone, and return their names.

    Raises:
        FileError: it holds something else.
    """
    names = [info.filename for info in infos]
    for info in infos:
        name = info.filename
        # A terminal would follow an escape sequence in a name.
        if not is_plain_file(info) or "/" not in name or not name.isprintable():
            raise FileError(path, f"holds {name[:80]!r}, which is not a file of a run")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise FileError(path, "is packed by another program; nothing is imported")
    known = set(names)
    parents = {parent.as_posix() for name in names for parent in PurePosixPath(name).parents}
    if len(known) < len(names) or known & parents:
        raise FileError(path, "holds two files of one name; nothing is imported")
    if sum(info.file_size for info in infos) > path.stat().st_size:
        raise FileError(path, "unpacks to more than it holds; nothing is imported")
    runs = sorted({name.partition("/")[0] for name in names})
    for run in runs:
        if f"{run}/config.yaml" not in known:
            raise FileError(path, f"holds {run} without its config.yaml; nothing is imported")
    if not runs:
        raise FileError(path, "holds no runs")
    return runs


def _require_space(infos: Sequence[zipfile.ZipInfo], path: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    needed, free = sum(info.file_size for info in infos), shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"{path} needs {needed / 1e6:,.0f} MB, and {out} has {free / 1e6:,.0f} MB free; free "
            "some"
        )


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A hidden folder below `out`, removed at the end; what killed processes left goes first."""
    for left in out.glob(".import.*.tmp"):
        pid = left.name.split(".")[2]
        if pid.isdecimal() and not is_other_process(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    aside = out / f".import.{os.getpid()}.tmp"
    aside.mkdir()
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _extract(zipped: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipped.open(info) as source, target.open("xb") as file:
        shutil.copyfileobj(source, file, _BLOCK)
    if target.stat().st_size != info.file_size:
        raise DamagedError(Path(str(zipped.filename)), f"is damaged: {info.filename} is cut short")
    changed_s = datetime(*info.date_time, tzinfo=timezone.utc).timestamp()
    # `latest` is the run that was started last, not the one that was imported last.
    os.utime(target, (changed_s, changed_s))


def _appear(runs: Sequence[str], aside: Path, out: Path) -> list[Path]:
    """Move runs to their places: all of them, or none."""
    moved = list[Path]()
    try:
        for run in runs:
            if os.path.lexists(out / run):
                raise UserError(f"{out / run} exists already; import into another --out")
            (aside / run).rename(out / run)
            moved.append(out / run)
    except BaseException:
        # Also an interrupt.
        for folder in moved:
            folder.rename(aside / folder.name)
        raise
    return moved
