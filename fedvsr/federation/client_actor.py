"""What runs in the process of a client, or of a slot that takes one client after the other.

The module itself imports no PyTorch, so that a process answers before it has imported it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from fedvsr.federation.aggregation import cut
from fedvsr.heap import keep_freed
from fedvsr.limits import FETCH_S

if TYPE_CHECKING:
    from fedvsr.data.clips import Clip
    from fedvsr.federation.executors import Clients
    from fedvsr.federation.masking import Field, KeyPair, MaskRequest
    from fedvsr.messages import ClientTask, Vectors
    from fedvsr.params import FloatVector
    from fedvsr.training.local import LocalTrainer
    from fedvsr.training.updates import UpdateConfig


def keep_to_own_gpus() -> None:
    """Hide all GPUs from an actor that holds no share: Ray shows it every GPU of its node."""
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


class ClientActor:
    """Trains with a network of its own. It returns a report and an update, no more.

    Args:
        settings: holds the reference to a `Clients` without clips, which come with each task.
        client_id: the client whose process this is; None if it takes one after the other, and
            keeps nothing of the former one.
    """

    def __init__(self, settings: tuple[Any], client_id: int | None) -> None:
        keep_to_own_gpus()
        keep_freed()
        (self._settings,), self._client_id = settings, client_id
        # Set with the trainer.
        self._update: UpdateConfig
        self._trainer: LocalTrainer | None = None
        self._vector: FloatVector | None = None
        # Under `update.secure_sum`: the update that is not masked yet, and the keys for it.
        self._change: FloatVector | None = None
        self._pair: KeyPair | None = None

    def ping(self) -> None:
        """Answer; see `Pulse`."""

    def ready(self) -> None:
        """Build the trainer, while another client trains rather than in this one's first task."""
        self._build()

    def train(
        self,
        task: ClientTask,
        shared: Vectors,
        state: Vectors,
        clips: Sequence[Clip],
        num_slices: int = 1,
    ) -> tuple[Any, ...]:
        """Train one task; see `LocalTrainer.train`.

        Args:
            task: the work.
            shared: the server's vectors (P,), in read-only memory that all actors share.
            state: what the client remembers.
            clips: the client's clips.
            num_slices: parts of the upload, each of which may be fetched by another node.

        Returns:
            The client's report, what it remembers, and each slice of its upload. The upload is
            empty under `update.secure_sum`: the update stays here until it is masked.
        """
        assert self._client_id in (None, task.client_id)
        self._change = self._pair = None
        out = self._vector
        if out is None:
            out = np.empty_like(shared["params"])
        if self._client_id is not None:
            self._vector = out
        trainer = self._build()
        try:
            # Ray copies the result to the object store before the next task begins.
            report, update = trainer.train(task, shared, state, clips, out)
            if self._update.secure_sum:
                return report, update.state, self._keep(update.upload, shared, task)
            return report, update.state, *_slices(update.upload, num_slices)
        finally:
            # The next client on this GPU needs the memory.
            trainer.release()
            if self._client_id is None:
                trainer.forget()

    def open_key(self) -> bytes:
        """Make keys for one sum; returns the public one."""
        from fedvsr.federation.masking import KeyPair

        self._pair = KeyPair()
        return self._pair.public

    def mask(self, request: MaskRequest) -> Field:
        """The update, masked with the keys of `open_key`, which are used once.

        Raises:
            ValueError: there is no update, or see `KeyPair.mask`.
        """
        pair, self._pair = self._pair, None
        if self._change is None or pair is None:
            raise ValueError(f"client {request.client_id} has no update or no key to mask it with")
        return pair.mask(self._change, request)

    def _keep(
        self, upload: Mapping[str, Any], shared: Vectors, task: ClientTask
    ) -> Mapping[str, Any]:
        """Keep the update of a task; returns what is sent, which is nothing."""
        from fedvsr.federation.masking import change_of

        # Empty if the client diverged.
        if upload:
            params, begin = upload["params"], shared["params"]
            ids = task.client_id, task.round_idx
            self._change = change_of(params, begin, self._update, *ids, out=params)
        return {}

    def _build(self) -> LocalTrainer:
        # Not in `__init__`: the process answers `ping` only after that.
        if self._trainer is None:
            with _no_collection():
                clients: Clients = ray.get(self._settings, timeout=FETCH_S)
                self._update = clients.update
                self._trainer = clients.make_trainer()
        return self._trainer


def _slices(upload: Mapping[str, Any], num_slices: int) -> Iterator[Mapping[str, Any]]:
    """The upload in parts: views, which Ray copies one by one."""
    if num_slices == 1:
        yield upload
        return
    # Empty if the client diverged. All vectors have the parameters' length.
    size = len(upload["params"]) if upload else 0
    for part in cut(size, num_slices):
        yield {name: vector[part] for name, vector in upload.items()}


@contextmanager
def _no_collection() -> Iterator[None]:
    """Look for no garbage inside: among what an import makes there is none, and most is kept.

    That saves a sixth of PyTorch's import.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
