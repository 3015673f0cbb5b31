"""A run's folder as lines of text, from the node that holds it to the one who asked for it.

A Ray job gives back no file but its log, so the folder travels in it: as a zip file in base64, with
its length and SHA-256. Only the standard library is used, and any Python from 3.8 on will do: the
sending side is this one file, shipped by itself (`python run_archive.py FOLDER [--checkpoints]`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Marks a line of ours among whatever else a job's log holds.
DATA, END, FAILED = "fedvsr-data:", "fedvsr-end:", "fedvsr-failed:"
# Bytes a line; Ray sends a log on by chunks of about 20,000 characters.
_BLOCK = 14_400


def lines(folder: Path, checkpoints: bool) -> Iterator[str]:
    """The folder's files, but for hidden ones and, unless asked for, `checkpoints/`."""
    if not folder.is_dir():
        yield f"{FAILED}there is no folder {folder} on this node"
        return
    sink = _Blocks()
    num_files = 0
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            hidden = any(part.startswith(".") for part in inside.parts)
            left_out = hidden or (inside.parts[0] == "checkpoints" and not checkpoints)
            if left_out or not path.is_file():
                continue
            num_files += 1
            info = zipfile.ZipInfo.from_file(path, str(inside), strict_timestamps=False)
            with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
                while block := source.read(1 << 20):
                    target.write(block)
                    yield from sink.lines()
    yield from sink.lines(last=True)
    end = {"num_files": num_files, "bytes": sink.size, "sha256": sink.digest.hexdigest()}
    yield END + json.dumps(end)


def read(log: Iterable[str], file: IO[bytes]) -> int:
    """Write the zip file that a log holds into `file`; return the number of files in it.

    Raises:
        ValueError: the sender could not read the folder, or the log is not whole.
    """
    digest, size, said = hashlib.sha256(), 0, []
    for line in log:
        line = line.rstrip("\r\n")
        if line.startswith(DATA):
            block = base64.b64decode(line[len(DATA) :], validate=True)
            digest.update(block)
            size += len(block)
            file.write(block)
        elif line.startswith(FAILED):
            raise ValueError(line[len(FAILED) :])
        elif line.startswith(END):
            end = json.loads(line[len(END) :])
            if (size, digest.hexdigest()) != (end["bytes"], end["sha256"]):
                raise ValueError(f"{size} of {end['bytes']} bytes came, or came damaged")
            return int(end["num_files"])
        elif line:
            said.append(line)
    raise ValueError("; ".join(said[-3:]) or "nothing was sent")


class _Blocks:
    """What a zip file is written to: it goes on as lines, so that memory stays small."""

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
    for text in lines(Path(sys.argv[1]).expanduser(), "--checkpoints" in sys.argv[2:]):
        sys.stdout.write(text + "\n")
