"""What a clip store is asked for, and whether it is there."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedvsr.data.clips import Degradation, Store, open_store
from fedvsr.errors import UserError


@dataclass(frozen=True)
class Request:
    """What is asked for. Two requests with equal settings make the same store."""

    out: Path
    source: str
    """The kind of data set: reds, vid4, kinetics or folder."""
    scale: int
    degradation: Degradation
    settings: dict[str, Any] = field(default_factory=dict)
    """Whatever else decides the result, as JSON has it."""
    picks: tuple[str, ...] = ()
    """Those of the settings that pick clips and change none: what another pick left unfinished is
    gone on from."""
    overwrite: bool = False
    """Replace a store that is there, and begin anew where another request was left unfinished."""

    def as_dict(self) -> dict[str, Any]:
        """What is kept with the store, and compared with another request."""
        common = {"source": self.source, "scale": self.scale, "degradation": self.degradation}
        return json.loads(json.dumps(common | self.settings))  # type: ignore[no-any-return]

    def makes_the_clips_of(self, before: dict[str, Any]) -> bool:
        """Whether clips made by settings of before are as this request would make them."""
        settings = self.as_dict()
        return all(
            before.get(name) == settings.get(name)
            for name in {*before, *settings}.difference(self.picks)
        )


def existing(request: Request) -> Store | None:
    """The store that the request asks for, where it is finished already.

    Raises:
        UserError: `out` is something else, which is not to be replaced.
    """
    out = request.out
    if not out.exists():
        return None
    store = open_store(out)
    if store is None:
        if out.is_dir() and not any(out.iterdir()):
            return None
        raise UserError(f"{out} is there and is no clip store; choose another --out")
    if request.overwrite:
        return None
    if store.request != request.as_dict():
        raise UserError(
            f"{out} is a store made with other settings ({difference(store.request, request)}); "
            "choose another --out, or replace it with --overwrite"
        )
    return store


def difference(before: dict[str, Any], request: Request) -> str:
    """Which settings differ from those of before, for a message."""
    now = request.as_dict()
    differing = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
    return ", ".join(
        f"{name} {_short(before.get(name))}, not {_short(now.get(name))}" for name in differing
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
