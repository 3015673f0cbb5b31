"""TensorBoard's files. tensorboardX writes them, which Ray Tune brings; to write needs no more."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from fedvsr.loggers.feed import Ending, Round
from fedvsr.loggers.subject import CONFIG_FILE, Subject

FOLDER = "tensorboard"
# Tags of what is not of a round.
_CONFIG = "configuration"
# A record of these files: its length, a checksum of that, the record, and its checksum.
_LENGTH, _CHECKSUM = 8, 4


class TensorBoard:
    """Adds to the files in the run's folder. A round is one record, so it is whole or missing."""

    def __init__(self, subject: Subject) -> None:
        folder = subject.folder / FOLDER
        folder.mkdir(exist_ok=True)
        self.last_round = last_round(folder)
        # Each start adds a file. Its name has the second of the start, which two may share.
        number = len(list(folder.iterdir()))
        # Not tensorboardX's own writer above this one: its thread may lag behind a flush.
        self._writer = EventsWriter(str(folder / "events"), f".{number}")
        if self.last_round < 0:
            text = (subject.folder / CONFIG_FILE).read_text()
            self._add(summary.text(_CONFIG, f"```yaml\n{text}\n```"), 0)

    def log(self, finished: Round) -> None:
        """Add a round's values."""
        values = [Summary.Value(tag=k, simple_value=v) for k, v in finished.values.items()]
        self._add(Summary(value=values), finished.round_idx)
        self.last_round = finished.round_idx

    def end(self, ending: Ending) -> None:
        """Add the pictures and the last scores, and close the file."""
        for picture in ending.pictures:
            with Image.open(picture.path) as opened:
                pixels = np.asarray(opened.convert("RGB"))
            tag = f"{picture.clip}/{picture.kind}"
            self._add(summary.image(tag, pixels, dataformats="HWC"), ending.round_idx)
        if ending.scores:
            self._add(summary.text("scores", table(ending.scores)), ending.round_idx)
        self._writer.close()

    def _add(self, what: Summary, round_idx: int) -> None:
        self._writer.write_event(Event(summary=what, step=round_idx, wall_time=time.time()))
        self._writer.flush()


def table(rows: Sequence[Mapping[str, str | float]]) -> str:
    """Rows of equal columns as a table in Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [
        [f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: str | float) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def last_round(folder: Path) -> int:
    """The last round in a folder's files; -1 if there is none."""
    events = [event for path in folder.glob("events.out.tfevents.*") for event in read(path)]
    return max(
        (e.step for e in events if any(v.HasField("simple_value") for v in e.summary.value)),
        default=-1,
    )


def read(path: Path) -> Iterator[Event]:
    """The whole records of a file; a kill may have cut off its last one."""
    data, start = path.read_bytes(), 0
    while len(data) >= (begin := start + _LENGTH + _CHECKSUM):
        end = begin + int.from_bytes(data[start : start + _LENGTH], "little")
        start = end + _CHECKSUM
        if len(data) < start:
            return
        try:
            yield Event.FromString(data[begin:end])
        except DecodeError:
            return
