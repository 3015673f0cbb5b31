"""The last lines of a run's `events.jsonl`: as dictionaries, and as sentences for people."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

NAME = "events.jsonl"
# Read from the end of the file: some hundred events of clients.
_TAIL_BYTES = 256 * 1024
_LINES = 60

Event = dict[str, Any]


def last_events(folder: Path) -> list[Event]:
    """The newest events of a run, oldest first; empty if it has none yet.

    A line that is cut off, at either end, or damaged is left out: the tables are the record.
    """
    try:
        with (folder / NAME).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES)
    except FileNotFoundError:
        return []
    return list(_parsed(text.split(b"\n")))


def _parsed(lines: Iterable[bytes]) -> Iterator[Event]:
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event


def log(events: list[Event]) -> list[dict[str, str]]:
    """The newest events as sentences, newest first, each with its time (`at`)."""
    sentences = [
        {"at": str(event.get("at", "")), "text": text}
        for event in events
        for text in _sentences(event)
    ]
    return sentences[: -_LINES - 1 : -1]


def _sentences(event: Event) -> Iterator[str]:
    kind, get = event.get("event"), event.get
    if kind == "RunStarted":
        after = f" after round {get('round_idx')}" if get("round_idx") else ""
        yield f"{'resumed' if after else 'started'}{after} on {get('device')}"
        yield from map(str, get("notes") or ())
    elif kind == "ClientFinished":
        yield (
            f"round {get('round_idx')}: client {get('client_id')} finished in "
            f"{number(get('train_s'), 1)} s, loss {number(get('loss'), 4)} "
            f"({get('num_finished')} of {get('num_sampled')} clients)"
        )
    elif kind == "Fault":
        consequence = "given up" if get("final") else "retried"
        yield f"round {get('round_idx')}: {get('kind')}: {get('message')}; {consequence}"
    elif kind == "RoundRecorded":
        parts = [f"round {get('round_idx')} recorded"]
        if get("loss") is not None:
            parts.append(f"loss {number(get('loss'), 4)}")
        if get("num_upload_failures"):
            parts.append(f"{get('num_upload_failures')} uploads lost")
        parts.append(f"{number(get('wall_s'), 1)} s")
        yield ", ".join(parts)
    elif kind:
        yield str(kind)


def number(value: Any, digits: int) -> str:
    """A number with its decimals, or what stands for one that is not known."""
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "?"
