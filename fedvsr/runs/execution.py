"""A run while it is executed: rounds, scores, records, checkpoints, and the trained network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from fedvsr import __version__, algorithms, models
from fedvsr.algorithms.base import start
from fedvsr.data.split import Split
from fedvsr.determinism import scoped_torch
from fedvsr.environment import git_commit
from fedvsr.errors import UserError
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.executors import Clients, Executor, Fault
from fedvsr.federation.rounds import (
    ClientFinished,
    RoundSetup,
    RunState,
    run_rounds,
)
from fedvsr.federation.sampling import FederationConfig
from fedvsr.files import DISK_FULL, remove_temporaries
from fedvsr.inference.evaluate import Evaluator
from fedvsr.limits import ClusterGoneError
from fedvsr.messages import LostError
from fedvsr.models.origin import joined, parts, weights_source
from fedvsr.params import FloatVector, ParamTable, flatten, load_flat
from fedvsr.recording import RunRecords
from fedvsr.records import read_run
from fedvsr.runs import rows
from fedvsr.runs.audit import faults_before, missing_rows, set_aside_damaged
from fedvsr.runs.events import Event, EventLog, RunStarted
from fedvsr.runs.logged import RunLoggers
from fedvsr.runs.networks import Networks
from fedvsr.runs.notes import notes_of
from fedvsr.runs.run import Run, locked
from fedvsr.runs.scoring import RoundScores, epsilon_after
from fedvsr.seeding import derive_seed
from fedvsr.training import checkpoint
from fedvsr.training.requirements import model_spec
from fedvsr.training.roles import layout_of


def execute(
    run: Run,
    split: Split,
    make_executor: Callable[[Clients], Executor],
    patience_s: float = 1.0,
    notes: tuple[str, ...] = (),
) -> Iterator[Event]:
    """Run to the end, from the newest checkpoint if there is one. Yields recorded events.

    Whatever ends the run early, the last finished round is saved and the run's row says how it
    ended.

    Args:
        run: the run; one process at a time executes it.
        split: its clips.
        make_executor: makes what trains the clients.
        patience_s: how long to wait for another process that still executes the run.
        notes: what the user should know, besides `notes_of`, each time that the run starts.

    Raises:
        UserError: another process writes this run, the disk is full, or training failed for a
            reason that the user can fix.
    """
    with locked(run.folder, patience_s):
        execution = Execution(run, split, make_executor, notes)
        loggers = RunLoggers(run, execution.records)
        try:
            with EventLog(run.folder / "events.jsonl", run.run_id) as log:
                for event in execution.events():
                    log.write(event)
                    loggers.tell(event)
                    yield event
                    for fault in loggers.faults():
                        log.write(execution.record_fault(fault))
                        yield fault
        except (GeneratorExit, KeyboardInterrupt):
            execution.save_at_end()
            execution.write_run("interrupted")
            loggers.end("interrupted")
            raise
        except BaseException as error:
            # Whatever ends a run is recorded with it.
            full = isinstance(error, OSError) and error.errno in DISK_FULL
            # A full disk cannot take this row; the run then reads as stopped.
            with suppress(OSError):
                execution.save_at_end(isinstance(error, ClusterGoneError))
                execution.write_run("failed", error=str(error))
            loggers.end("failed")
            if full:
                raise UserError(
                    f"no space left on the disk of {run.folder}; free some, then give the same "
                    "command with --resume"
                ) from error
            raise
        # The run has finished: Ctrl-C ends only the wait for its loggers.
        with suppress(KeyboardInterrupt):
            loggers.end("finished")
        for fault in loggers.faults():
            execution.record_fault(fault)
            execution.write_run("finished")
            yield fault


class Execution:
    """A run that is being executed.

    Training continues while a round is scored. So a round's row is written when the round is
    trained, and its scores are added when they arrive. A checkpoint is saved only after the scores
    of the round before it are written; a resumed run makes the last scores if they are missing.

    Args:
        run: the run.
        split: its clips.
        make_executor: makes what trains the clients.
        notes: see `execute`.
    """

    def __init__(
        self,
        run: Run,
        split: Split,
        make_executor: Callable[[Clients], Executor],
        notes: tuple[str, ...] = (),
    ) -> None:
        config = run.config
        self.run, self.split, self.make_executor, self.notes = run, split, make_executor, notes
        self.executor_name = self.device_name = ""
        self.checkpoints = run.folder / "checkpoints"
        with scoped_torch(derive_seed(config.seed, "init"), 1):
            self.network = models.build_fresh(config.model)
        self.table = ParamTable.of(self.network)
        self.algorithm = algorithms.build(config.algorithm)
        spec = model_spec(config.model)
        self.layout = layout_of(self.network, spec, config.algorithm, config.local)
        split.of_clients.move_to_disk(run.folder)
        self.clients = Clients(
            config.model,
            config.algorithm,
            config.local,
            split.of_clients,
            config.update,
        )
        if self.algorithm.pooled:
            self.clients = self.clients.pooled(config.federation.clients_per_round)
        self.states = ClientStates(self.checkpoints, config.cluster.client_state_bytes)
        self.networks = Networks(self.layout, self.algorithm, self.states, len(self.clients.clips))
        # Set by `events`.
        self.state: RunState | None = None
        self.saved_round = 0
        identity = {
            "run_id": run.run_id,
            "config_hash": config.config_hash(),
            "seed": config.seed,
            "fedvsr_version": __version__,
            "git_commit": git_commit(),
            "num_overlap": len(split.overlap),
            "num_same_video": len(split.same_video),
        }
        remove_temporaries(run.folder)
        self.damaged_tables = set_aside_damaged(run.folder)
        self.records = RunRecords(run.folder, identity)
        self.scores = RoundScores(run, self.records, self.networks, self.record_fault)
        before = read_run(run.folder)
        self.started_at = before["started_at"] if before else datetime.now(timezone.utc)
        self.died_before = before is not None and before["status"] == "running"
        # The files of a run that is resumed may be gone.
        self.weights_source = (
            parts(before["weights_source"]) if before else weights_source(config.model)
        )

    def events(self) -> Iterator[Event]:
        """Execute the rest of the run. What an event reports is on disk before it is yielded."""
        config = self.run.config
        saved = self._newest()
        state = self.state = self._initial_state(saved.state)
        self.saved_round = state.round_idx
        lost = [*self.damaged_tables, *self._lost_rows(saved.state)]
        rest = None if self.layout.all_shared else self.networks.rest
        executor = self.make_executor(replace(self.clients, rest=rest))
        try:
            scorer = executor.start_scorer(
                partial(
                    Evaluator,
                    config.model,
                    config.evaluation,
                    self.split.test,
                    self.split.test_sets,
                )
            )
            self.scores.scorer = scorer
            self.executor_name, self.device_name = executor.name, scorer.device_name
            self.write_run("running")
            self.records.write_partition(rows.partition_rows(self.split.of_clients))
            notes = () if saved.state else notes_of(config, self.split)
            yield self._started((*saved.damaged, *lost, *notes, *self.notes))
            for fault in faults_before(state.round_idx, saved.damaged, lost, self.died_before):
                yield self.record_fault(fault)
            yield from self._whole(state, executor)
            self._finish(self.state.params)
        finally:
            executor.close()

    def _whole(self, state: RunState, executor: Executor) -> Iterator[Event]:
        """The remaining rounds; again from the checkpoint if what a client remembers is lost."""
        for retries_left in range(self.run.config.cluster.max_retries, -1, -1):
            if not self.records.has_scores(state.round_idx, self.scores.is_due(state.round_idx)):
                self.scores.begin(state)
            try:
                yield from self._rounds(state, executor)
                yield from self.scores.settle()
                return
            except UserError as error:
                # The round before is whole with its scores, which a sweep waits for: without any,
                # it would try again what fails the same way. The error says more than theirs would.
                if not isinstance(error, ClusterGoneError):
                    with suppress(UserError, RuntimeError):
                        yield from self.scores.settle()
                raise
            except LostError as error:
                lost = f"what client {error.client_id} remembered was lost with its node: {error}"
                if not retries_left:
                    raise UserError(f"{lost}; give the same command with --resume") from error
                yield from self.scores.settle()
                saved = self._newest()
                state = self.state = self._initial_state(saved.state)
                self.saved_round = state.round_idx
                message = f"{lost}; resumed after round {state.round_idx}"
                yield self.record_fault(
                    Fault(state.round_idx + 1, error.client_id, "node_lost", message)
                )
                yield self._started(saved.damaged)

    def _started(self, notes: tuple[str, ...]) -> RunStarted:
        return RunStarted(
            self.run.run_id,
            self.saved_round,
            self.run.config.federation.num_rounds,
            self.table.size,
            len(self.clients.clips),
            self.device_name,
            notes,
            self.layout.table_of("shared").size,
        )

    def _newest(self) -> checkpoint.Newest:
        config_hash = self.run.config.config_hash()
        return checkpoint.latest(
            self.checkpoints, self.table, config_hash, self.states.require_readable
        )

    def _initial_state(self, saved: checkpoint.Saved | None) -> RunState:
        """The state of a checkpoint, or that of a run that has not trained."""
        self.states.restore(saved.clients if saved else {})
        if saved is None:
            models.load_start(self.network, self.run.config.model)
            params = self.networks.begin(flatten(self.network))
            return RunState(0, start(self.algorithm, params), {})
        params = self.networks.begin(saved.server["params"])
        return RunState(saved.round_idx, {**saved.server, "params": params}, saved.losses)

    def _rounds(self, state: RunState, executor: Executor) -> Iterator[Event]:
        """Train, record, save and score the remaining rounds."""
        config = self.run.config
        federation = config.federation
        if self.algorithm.pooled:
            federation = FederationConfig(num_rounds=federation.num_rounds, clients_per_round=1)
        setup = RoundSetup(
            self.algorithm,
            federation,
            config.update,
            sizes=self.clients.sizes,
            tensors=self.layout.table_of("shared").slices(),
            seed=config.seed,
        )
        for event in run_rounds(state, setup, executor, self.states):
            yield from self.scores.settle_if_ready()
            if isinstance(event, Fault):
                yield self.record_fault(event)
            elif isinstance(event, ClientFinished):
                yield event
            else:
                yield from self.scores.settle()
                self.records.write_round(
                    event.state.round_idx,
                    rows.round_row(event, epsilon_after(config, event.state.round_idx)),
                    rows.client_rows(event),
                )
                self.state = event.state
                last = event.state.round_idx == config.federation.num_rounds
                if last or event.state.round_idx % config.checkpoint.every_rounds == 0:
                    self.save()
                self.scores.begin(event.state, event)
                yield from self.scores.settle_if_ready()

    def save(self) -> None:
        """Save the state of the last finished round, unless it is saved already."""
        if self.state is None or self.state.round_idx == self.saved_round:
            return
        if self.states.newest_round > self.state.round_idx:
            # Stopped while the next round was summed: the clients' states are of that round already
            # and do not fit. The checkpoint before this one stays the newest.
            return
        state, config = self.state, self.run.config
        # The clients' files first: a checkpoint refers to them.
        server = {**state.server, "params": self.networks.of_server(state.params)}
        saved = checkpoint.Saved(state.round_idx, server, self.states.save(), state.losses)
        kept = checkpoint.save(self.checkpoints, saved, self.table, config.config_hash())
        self.states.clean(kept)
        self.saved_round = state.round_idx

    def save_at_end(self, cluster_is_gone: bool = False) -> None:
        """As `save`; if what a client remembers is lost, the checkpoint before stays the newest.

        Args:
            cluster_is_gone: whether nothing can be fetched: to try could block for ever.
        """
        if cluster_is_gone and self.states.need_others:
            return
        with suppress(LostError):
            self.save()

    def write_run(self, status: str, error: str | None = None) -> None:
        """Write the run's own row.

        Args:
            status: `running`, `finished`, `failed` or `interrupted`.
            error: why it failed.
        """
        self.records.write_run(
            {
                **rows.run_row(self.run.config),
                "num_params": self.table.size,
                "num_shared_params": self.layout.table_of("shared").size,
                "num_clients": len(self.clients.clips),
                "num_train_clips": len(self.split.of_clients.clips),
                "num_test_clips": self.split.num_test_clips,
                **self.records.last_evaluation(),
                "status": status,
                "error": error,
                "weights_source": joined(self.weights_source),
                "executor": self.executor_name,
                "device": self.device_name,
                "started_at": self.started_at,
                "updated_at": datetime.now(timezone.utc),
            }
        )

    # Faults

    def _lost_rows(self, saved: checkpoint.Saved | None) -> list[str]:
        """What the tables lack of the rounds that are not repeated."""
        if saved is None:
            return []
        # The last scores are made again if they are missing.
        evaluated = {r for r in range(saved.round_idx) if self.split.test and self.scores.is_due(r)}
        return missing_rows(self.run.folder, saved.round_idx, evaluated)

    def record_fault(self, fault: Fault) -> Fault:
        """Write a fault's row, and return the fault as an event."""
        row = {f.name: getattr(fault, f.name) for f in fields(fault) if f.name != "error"}
        self.records.add_fault(row)
        # The exception may not be picklable, and events travel between processes.
        return replace(fault, error=None)

    # The end

    def _finish(self, params: FloatVector) -> None:
        """Save the trained network, then mark the run as finished.

        A personal method saves every client's network.
        """
        if self.algorithm.personal:
            for client_id in reversed(range(len(self.clients.clips))):
                whole = self.networks.of_client(client_id, params)
                self._save_network(whole, checkpoint.client_file(self.run.folder, client_id))
        else:
            whole = self.networks.of_server(params)
            self._save_network(whole, self.run.folder / "model.safetensors")
        if not any((self.run.folder / "frames").glob("*.png")):
            # An earlier version of the program has scored it, which kept pictures only now.
            self.scores.save_pictures(whole)
        self.write_run("finished")

    def _save_network(self, params: FloatVector, path: Path) -> None:
        load_flat(self.network, params)
        path.parent.mkdir(exist_ok=True)
        checkpoint.save_model(path, self.network, self.run.config.model, self.weights_source)
