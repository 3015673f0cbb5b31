"""A round of a run, computed again: what the server sent, and what a client sent back.

P is the number of shared parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedvsr import algorithms, models
from fedvsr.algorithms.base import FedAvg, start
from fedvsr.config import ExperimentConfig
from fedvsr.data.clips import Clip
from fedvsr.data.split import prepare
from fedvsr.data.videos import Progress
from fedvsr.determinism import scoped_torch
from fedvsr.errors import FileError, UserError
from fedvsr.federation.client_states import ClientStates
from fedvsr.layout import NOT_SHARED, Layout
from fedvsr.messages import ClientReport, ClientTask, ClientUpdate, Vectors
from fedvsr.params import FloatVector, flatten
from fedvsr.records import read_table
from fedvsr.runs.launch import with_owners
from fedvsr.runs.run import stored_config
from fedvsr.seeding import derive_seed
from fedvsr.training import checkpoint
from fedvsr.training.config import LocalConfig
from fedvsr.training.local import LocalTrainer
from fedvsr.training.requirements import model_spec
from fedvsr.training.roles import layout_of
from fedvsr.training.updates import UpdateConfig


@dataclass(frozen=True)
class Replay:
    """A finished round of a run, as it stood before its clients trained."""

    run_id: str
    config: ExperimentConfig
    algorithm: FedAvg
    round_idx: int
    layout: Layout
    """Which parameters are shared."""
    rest: FloatVector
    """First values of the parameters that are not shared."""
    server: Vectors
    """The server's vectors (P,) before the round."""
    states: ClientStates
    """What clients remembered before the round."""
    recorded: Mapping[int, Mapping[str, Any]]
    """The row of each client of the round in `clients.parquet`, in sampled order."""
    clips: Sequence[Sequence[Clip]]
    """Each client's own, by client id."""

    @property
    def params(self) -> FloatVector:
        """The global parameters (P,) that the clients start from."""
        return self.server["params"]

    def require_client(self, client_id: int) -> None:
        """Check that a client trained in the round.

        Raises:
            UserError: it did not.
        """
        if client_id not in self.recorded:
            clients = ", ".join(map(str, sorted(self.recorded)))
            raise UserError(
                f"--client {client_id}: it did not train in round {self.round_idx} of "
                f"{self.run_id}; give one of {clients}"
            )

    def task(self, client_id: int) -> ClientTask:
        """The task that the client was given."""
        seed = derive_seed(self.config.seed, "client", client_id, self.round_idx)
        return ClientTask(client_id, self.round_idx, self.config.federation.num_rounds, seed)

    def train(
        self,
        client_id: int,
        local: LocalConfig | None = None,
        update: UpdateConfig | None = None,
    ) -> tuple[ClientReport, ClientUpdate]:
        """Train a client as in the round; with other settings, as one that remembers nothing.

        Args:
            client_id: the client.
            local: how to train instead.
            update: how updates travel instead.

        Returns:
            What the client sends: with the run's own settings, the bits that it sent, if this
            machine computes as the run's did.
        """
        config = self.config
        state = self.states.get(client_id) if local is None and update is None else {}
        trainer = LocalTrainer(
            config.model,
            config.algorithm,
            local or config.local,
            update or config.update,
            self.rest,
        )
        shared = {name: self.server[name] for name in self.algorithm.broadcast}
        return trainer.train(self.task(client_id), shared, state, self.clips[client_id])

    def is_recorded(self, report: ClientReport) -> bool:
        """Whether a report has the loss and the update's norm that the run recorded."""
        row = self.recorded[report.client_id]
        return (report.loss, report.update_norm) == (row["loss"], row["update_norm"])


def rewind(folder: Path, round_idx: int | None, progress: Progress) -> Replay:
    """Go back to the beginning of a run's round.

    Args:
        folder: the run's.
        round_idx: the round; None: the last one that can be computed again.
        progress: called while videos are cut.

    Raises:
        UserError: the run's clients send no updates, the round cannot be computed again, or the
            data are missing.
    """
    if not (folder / "config.yaml").is_file():
        raise FileError(folder, "is not a run's folder: config.yaml is missing")
    config = stored_config(folder)
    algorithm = algorithms.build(config.algorithm)
    if not algorithm.upload or algorithm.pooled:
        raise UserError(
            f"{folder.name} has algorithm.name = {config.algorithm.name}, whose clients send no "
            "updates, so there is nothing to audit"
        )
    with scoped_torch(derive_seed(config.seed, "init"), 1):
        network = models.build_fresh(config.model)
    layout = layout_of(network, model_spec(config.model), config.algorithm, config.local)
    rows = read_table(folder, "clients").to_pylist()
    saved = checkpoint.saved_rounds(folder / "checkpoints")
    round_idx = _choose(folder.name, round_idx, {r["round_idx"] for r in rows}, {0, *saved})
    states = ClientStates(folder / "checkpoints", config.cluster.client_state_bytes)
    if round_idx == 1:
        models.load_start(network, config.model)
        whole = flatten(network)
        server = start(algorithm, layout.take(whole, "shared"))
    else:
        path = folder / "checkpoints"
        state = checkpoint.read(path, round_idx - 1, layout.table, config.config_hash())
        states.require_readable(state.clients)
        states.restore(state.clients)
        whole = state.server["params"]
        server = {**state.server, "params": layout.take(whole, "shared")}
    return Replay(
        folder.resolve().name,
        config,
        algorithm,
        round_idx,
        layout,
        layout.take(whole, *NOT_SHARED),
        server,
        states,
        {row["client_id"]: row for row in rows if row["round_idx"] == round_idx},
        _clips(config, progress),
    )


def _clips(config: ExperimentConfig, progress: Progress) -> Sequence[Sequence[Clip]]:
    """Each client's clips; those of owners are read here too."""
    split = prepare(config.data, config.seed, progress)
    return with_owners(config, split, on_ray=False).clients


def _choose(run_id: str, wanted: int | None, recorded: set[int], saved: set[int]) -> int:
    """The round to audit: one that is recorded, and before which the state is known."""
    possible = sorted(r for r in recorded if r - 1 in saved)
    if not possible:
        raise UserError(f"{run_id} has no finished round yet; wait for its first one")
    if wanted is None:
        return possible[-1]
    if wanted not in possible:
        known = ", ".join(map(str, possible))
        raise UserError(
            f"--round {wanted}: {run_id} keeps the parameters before round {known} only; give one "
            "of these, or leave --round out"
        )
    return wanted
