"""Sends the folder of a job's run or sweep from the cluster's head, as lines of its own job's log.

A Ray job gives back no file but its log, so the folder travels there: as a zip file in base64, with
its length and SHA-256. The head runs this file by itself (`python archive.py OUT JOB
[--checkpoints]`), so it uses only the standard library and works with Python 3.8 or newer.
"""

from __future__ import annotations

import base64
import hashlib
import json
import stat
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Each line of the transfer begins with one of these; the log may hold other lines.
DATA, END = "fedvsr-data:", "fedvsr-end:"
# Instead of the folder: why it is not sent, as a JSON string.
NO_RUN, FAILED = "fedvsr-no-run:", "fedvsr-failed:"
# Folder in a job's `--out` where fedvsr writes which run or sweep a job works on: JOB.json.
JOBS = ".jobs"
# Folder in a job's `--out` of its sweep, if it runs one, and the file that each sweep's folder has.
SWEEPS, SWEEP_FILE = "sweeps", "sweep.yaml"
# Bytes per line; Ray sends a log in chunks of about 20,000 characters.
_BLOCK = 14_400


class NoRunError(ValueError):
    """The job has not started a run or sweep."""


@dataclass(frozen=True)
class Received:
    """What a complete transfer brought."""

    folder: str
    """The id of a run, or `sweeps/NAME` for a sweep."""
    num_files: int


def is_name(text: object) -> bool:
    """Whether a text names one visible entry of a folder: no separator, no `..`, not hidden."""
    return (
        isinstance(text, str)
        and bool(text)
        and not text.startswith(".")
        and not any(character in text for character in "/\\\0\n\r")
    )


def is_folder(text: object) -> bool:
    """Whether a text is a run's id, or `sweeps/` with a sweep's name."""
    parts = text.split("/") if isinstance(text, str) else []
    return all(map(is_name, parts)) and (len(parts) == 1 or parts[:-1] == [SWEEPS])


def is_plain_file(info: zipfile.ZipInfo) -> bool:
    """Whether an entry of a zip file is a visible file: no link, device, folder or outer path."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    return kind in (0, stat.S_IFREG) and all(map(is_name, info.filename.split("/")))


def sha256_of(folder: object) -> str:
    """The checksum that stands beside a folder in the record of a job.

    A checksum of its own, because on the head this file cannot import the package's.
    """
    return hashlib.sha256(str(folder).encode(errors="replace")).hexdigest()


def lines(out: Path, job_id: str, checkpoints: bool) -> Iterator[str]:
    """The lines that send the folder of a job's run or sweep.

    Hidden files are left out, the state of Ray Tune, and `checkpoints/` unless asked for.

    Args:
        out: the `--out` of the job.
        job_id: the job's submission id.
        checkpoints: send `checkpoints/` too.
    """
    try:
        name, folder = _folder(out, job_id)
        files = run_files(folder, checkpoints)
    except NoRunError as error:
        yield NO_RUN + json.dumps(str(error))
        return
    except (ValueError, OSError) as error:
        yield FAILED + json.dumps(str(error))
        return
    sink = _Blocks()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as zipped:  # type: ignore[call-overload]
        for path in files:
            inside = path.relative_to(folder).as_posix()
            info = zipfile.ZipInfo.from_file(path, inside, strict_timestamps=False)
            with path.open("rb") as source, zipped.open(info, "w", force_zip64=True) as target:
                while block := source.read(1 << 20):
                    target.write(block)
                    yield from sink.lines()
    yield from sink.lines(last=True)
    end = {"folder": name, "num_files": len(files)}
    yield END + json.dumps({**end, "bytes": sink.size, "sha256": sink.digest.hexdigest()})


def read(log: Iterable[str], file: IO[bytes]) -> Received:
    """Write the zip file that a log holds into `file`.

    Raises:
        NoRunError: the job has not started a run or sweep.
        ValueError: the sender could not read the folder, or the log is incomplete or damaged.
    """
    digest, size, other_lines = hashlib.sha256(), 0, []
    for line in log:
        line = line.rstrip("\r\n")
        if line.startswith(DATA):
            block = base64.b64decode(line[len(DATA) :], validate=True)
            digest.update(block)
            size += len(block)
            file.write(block)
        elif line.startswith(NO_RUN):
            raise NoRunError(json.loads(line[len(NO_RUN) :]))
        elif line.startswith(FAILED):
            raise ValueError(json.loads(line[len(FAILED) :]))
        elif line.startswith(END):
            end = json.loads(line[len(END) :])
            if (size, digest.hexdigest()) != (end["bytes"], end["sha256"]):
                raise ValueError(f"received {size} of {end['bytes']} bytes, or they are damaged")
            return Received(end["folder"], int(end["num_files"]))
        elif line:
            other_lines.append(line)
    raise ValueError("; ".join(other_lines[-3:]) or "nothing was sent")


def _folder(out: Path, job_id: str) -> tuple[str, Path]:
    """The folder that a job has recorded: under `out`, and its path.

    Raises:
        NoRunError: it has recorded none.
        ValueError: the record or the folder is not what fedvsr writes.
        OSError: the record cannot be read.
    """
    if not is_name(job_id):
        raise ValueError(f"{job_id!r} is not a job's id")
    record = out / JOBS / f"{job_id}.json"
    try:
        entry = json.loads(record.read_bytes())
        # Earlier versions wrote a run's id only, and the first ones without a checksum.
        name = entry["folder"] if "folder" in entry else entry["run_id"]
    except FileNotFoundError:
        raise NoRunError(f"{record} is missing") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{record} is damaged") from None
    if len(entry) > 1 and entry.get("sha256") != sha256_of(name):
        raise ValueError(f"{record} is damaged: its SHA-256 is not that of the folder's name")
    if not is_folder(name):
        raise ValueError(f"{record}: {name!r} is not the folder of a run or sweep")
    folder = out / name
    needed = SWEEP_FILE if "/" in name else "config.yaml"
    if not (folder / needed).is_file():
        kind = "sweep" if "/" in name else "run"
        raise ValueError(f"{folder} on the head is not a {kind}'s folder: {needed} is missing")
    return name, folder


def run_files(folder: Path, checkpoints: bool) -> list[Path]:
    """The files of the folder of a run or sweep, sorted, without hidden ones.

    Args:
        folder: the folder.
        checkpoints: whether those below `checkpoints/` count.

    Raises:
        ValueError: one of them is a link, which could show a file of another folder.
    """
    files = []
    is_sweep = (folder / SWEEP_FILE).is_file()
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") for part in parts):
            continue
        # Ray Tune's state names paths of the cluster: a sweep can only be resumed there.
        if is_sweep and parts[0] == "tune":
            continue
        # A sweep's runs are at runs/ID/.
        if parts[2 if is_sweep else 0 :][:1] == ("checkpoints",) and not checkpoints:
            continue
        if path.is_symlink():
            raise ValueError(f"{path} is a link; replace it by the file itself")
        if path.is_file():
            files.append(path)
    return files


class _Blocks:
    """The file that `zipfile` writes to: it turns the bytes into lines, so memory stays small."""

    def __init__(self) -> None:
        self.digest, self.size, self._waiting = hashlib.sha256(), 0, bytearray()

    def write(self, block: bytes) -> int:
        self.digest.update(block)
        self.size += len(block)
        self._waiting += block
        return len(block)

    def flush(self) -> None:
        pass

    def lines(self, last: bool = False) -> Iterator[str]:
        end = len(self._waiting)
        end -= 0 if last else end % _BLOCK
        for start in range(0, end, _BLOCK):
            block = self._waiting[start : min(start + _BLOCK, end)]
            yield DATA + base64.b64encode(block).decode()
        del self._waiting[:end]


if __name__ == "__main__":
    for text in lines(Path(sys.argv[1]).expanduser(), sys.argv[2], "--checkpoints" in sys.argv[3:]):
        sys.stdout.write(text + "\n")
