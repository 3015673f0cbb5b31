"""The request for a clip store, and the check whether the store already exists."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedvsr.data.clips import Degradation
from fedvsr.data.store import Store, open_store
from fedvsr.errors import UserError
from fedvsr.files import require_folder


@dataclass(frozen=True)
class Request:
    """A clip store to make. Requests with equal settings make equal stores."""

    out: Path
    source: str
    """The kind of data set: reds, vid4, kinetics, folder or video."""
    scale: int
    degradation: Degradation
    settings: dict[str, Any] = field(default_factory=dict)
    """All other settings that decide the result; values that JSON can hold."""
    picks: tuple[str, ...] = ()
    """Names of settings that choose clips but do not change them. An unfinished preparation with
    another choice can be resumed."""
    overwrite: bool = False
    """Replace an existing store, and delete what another request left unfinished."""

    def as_dict(self) -> dict[str, Any]:
        """The settings as the store's manifest keeps them, to compare with another request."""
        common = {"source": self.source, "scale": self.scale, "degradation": self.degradation}
        return json.loads(json.dumps(common | self.settings))  # type: ignore[no-any-return]

    def makes_the_clips_of(self, before: dict[str, Any]) -> bool:
        """Whether clips made with earlier settings equal those that this request would make."""
        settings = self.as_dict()
        return all(
            before.get(name) == settings.get(name)
            for name in {*before, *settings}.difference(self.picks)
        )


def existing(request: Request) -> Store | None:
    """The requested store if it is already finished, else None.

    Raises:
        UserError: `out` is a store of other settings, or not a store; it is not replaced.
    """
    out = request.out
    store = open_store(out)
    if store is None and os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(
            f"{out} exists and is not a clip store; choose another folder (--out, data.cache_dir)"
        )
    if store is None or request.overwrite:
        require_folder(out, "--out or data.cache_dir")
        return None
    if store.request != request.as_dict():
        raise UserError(
            f"{out} was made with other settings ({difference(store.request, request)}); "
            "choose another --out, or replace it with --overwrite"
        )
    return store


def difference(before: dict[str, Any], request: Request) -> str:
    """The settings that differ from earlier ones, for a message."""
    now = request.as_dict()
    differing = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
    return ", ".join(
        f"{name} {_short(before.get(name))}, not {_short(now.get(name))}" for name in differing
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
