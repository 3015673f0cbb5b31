"""A clip of an owner's stores, known by its number: it opens on the owner's nodes alone."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fedvsr.data.clips import Clip, Frames
from fedvsr.errors import UserError


@dataclass(frozen=True, slots=True)
class OwnedClip(Clip):
    """A clip of an owner's stores, by its number in them. It opens only where the stores are."""

    stores: tuple[str, ...] = ()
    number: int = 0

    def _open(self, kind: str) -> Frames:
        known, clips = (self.num_frames, self.height, self.width), _stored(self.stores)
        clip = clips[self.number] if self.number < len(clips) else None
        if clip is None or (clip.num_frames, clip.height, clip.width) != known:
            raise UserError(
                f"the stores of {self.label} have changed since the run began (clip "
                f"{self.clip_id}); restore them, or start a new run"
            )
        try:
            return clip._open(kind)
        except UserError:
            # Its name and path stay here; the owner finds them by the number.
            raise UserError(
                f"clip {self.clip_id}, number {self.number} from 0 of owner {self.label}'s stores, "
                f"cannot be read on {socket.gethostname()}; `fedvsr data verify` checks a store"
            ) from None


def read_stores(stores: Iterable[str]) -> Iterable[Clip]:
    """The clips of an owner's stores, in their order.

    Raises:
        UserError: a store is missing on this machine.
    """
    # It needs this module, for tables of clips.
    from fedvsr.data.store import read_store

    for store in stores:
        folder = Path(store).expanduser()
        clips = read_store(folder)
        if clips is None:
            raise UserError(
                f"there is no clip store {folder} on {socket.gethostname()}; `fedvsr data prepare` "
                "makes one"
            )
        yield from clips


@lru_cache(maxsize=8)
def _stored(stores: tuple[str, ...]) -> Sequence[Clip]:
    return tuple(read_stores(stores))
