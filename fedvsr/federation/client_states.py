"""What clients remember between their rounds: in memory, here or on another node, or on disk.

A client's vectors are written at most once per round, to a file whose name says the client and the
round. A checkpoint therefore saves only what changed since the last one, and refers to the rest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from fedvsr.checked import read_metadata, read_tensors, write_tensors
from fedvsr.errors import DamagedError, UserError
from fedvsr.messages import Elsewhere, LostError, Vectors


class ClientStates:
    """Vectors (P,) by client and name; the least recently used ones leave memory first.

    Args:
        folder: folder of the files; None keeps everything in memory.
        max_bytes: memory that the vectors may take, here and elsewhere together.
    """

    def __init__(self, folder: Path | None = None, max_bytes: int = 2**30) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._rounds = dict[int, int]()
        self._on_disk = set[int]()
        # Least recently used first.
        self._held = OrderedDict[int, Vectors | Elsewhere]()

    def get(self, client_id: int) -> Vectors:
        """The vectors that the client remembers; empty if there are none.

        Raises:
            UserError: the client's file is damaged.
            LostError: they were elsewhere, are lost, and are not on disk.
        """
        held = self.find(client_id)
        return held if isinstance(held, dict) else self._fetch(client_id, held)

    def find(self, client_id: int) -> Vectors | Elsewhere:
        """As `get`, but what lies elsewhere stays there.

        Raises:
            UserError: the client's file is damaged.
        """
        if client_id not in self._rounds:
            return {}
        if client_id not in self._held:
            self._hold(client_id, self._read(client_id))
        self._held.move_to_end(client_id)
        return self._held[client_id]

    def round_of(self, client_id: int) -> int | None:
        """The round whose state the client remembers; None if it remembers nothing."""
        return self._rounds.get(client_id)

    @property
    def newest_round(self) -> int:
        """The latest round whose state any client remembers; 0 if no client remembers anything."""
        return max(self._rounds.values(), default=0)

    @property
    def need_others(self) -> bool:
        """Whether `save` would fetch what lies elsewhere."""
        held = ((i, state) for i, state in self._held.items() if i not in self._on_disk)
        return any(not isinstance(state, dict) for _, state in held)

    def put(self, client_id: int, round_idx: int, state: Vectors | Elsewhere) -> None:
        """Let the client remember `state`, from round `round_idx`; an empty one changes nothing.

        Raises:
            LostError: another client's state leaves memory for disk, and is lost.
        """
        if not state:
            return
        self._rounds[client_id] = round_idx
        self._on_disk.discard(client_id)
        if isinstance(state, dict):
            # Copied, because a view would keep the whole update in memory.
            state = {name: np.array(vector) for name, vector in state.items()}
        self._hold(client_id, state)

    def save(self) -> dict[int, int]:
        """Write what is not on disk yet, and return the round of every client's state.

        Raises:
            LostError: a state was elsewhere, and is lost.
        """
        if self._folder is not None:
            for client_id in self._held:
                self._write(client_id)
        return dict(self._rounds)

    def restore(self, rounds: Mapping[int, int]) -> None:
        """Return to the states that `rounds`, a result of `save`, refers to."""
        self._held.clear()
        self._rounds, self._on_disk = dict(rounds), set(rounds)

    def require_readable(self, rounds: Mapping[int, int]) -> None:
        """Check the files that `rounds`, a result of `save`, refers to.

        Raises:
            DamagedError: one is missing or damaged, or holds the state of another client or round.
        """
        for client_id, round_idx in rounds.items():
            path = self._path(client_id, round_idx)
            metadata = read_metadata(path)
            # An older version wrote none.
            owner = {"client_id": client_id, "round_idx": round_idx}
            if metadata and {key: metadata.get(key) for key in owner} != owner:
                raise DamagedError(path, "is the state of another client or round")

    def clean(self, saved: Iterable[Mapping[int, int]]) -> None:
        """Remove the files that neither the current states nor any of `saved` refer to."""
        if self._folder is None or not self._folder.is_dir():
            return
        needed = {self._path(*item) for index in (*saved, self._rounds) for item in index.items()}
        for path in self._folder.glob("client-*.safetensors"):
            if path not in needed:
                path.unlink()

    def _fetch(self, client_id: int, state: Elsewhere) -> Vectors:
        try:
            return state.fetch()
        except LostError:
            if client_id not in self._on_disk:
                raise
        self._held[client_id] = vectors = self._read(client_id)
        return vectors

    def _hold(self, client_id: int, state: Vectors | Elsewhere) -> None:
        self._held[client_id] = state
        self._held.move_to_end(client_id)
        held = sum(map(_nbytes, self._held.values()))
        while self._folder is not None and held > self._max_bytes and len(self._held) > 1:
            oldest = next(iter(self._held))
            self._write(oldest)
            held -= _nbytes(self._held.pop(oldest))

    def _write(self, client_id: int) -> None:
        if client_id in self._on_disk:
            return
        path = self._path(client_id, self._rounds[client_id])
        path.parent.mkdir(parents=True, exist_ok=True)
        owner = {"client_id": client_id, "round_idx": self._rounds[client_id]}
        held = self._held[client_id]
        write_tensors(path, held if isinstance(held, dict) else held.fetch(), owner)
        self._on_disk.add(client_id)

    def _read(self, client_id: int) -> Vectors:
        try:
            return read_tensors(self._path(client_id, self._rounds[client_id]))[0]
        except DamagedError as error:
            raise UserError(
                f"the state of client {client_id} cannot be read: {error}; give the same command "
                "with --resume, which takes the checkpoint before"
            ) from None

    def _path(self, client_id: int, round_idx: int) -> Path:
        assert self._folder is not None
        return self._folder / f"client-{client_id:05d}-round-{round_idx:06d}.safetensors"


def _nbytes(state: Vectors | Elsewhere) -> int:
    if isinstance(state, dict):
        return sum(vector.nbytes for vector in state.values())
    return state.nbytes
