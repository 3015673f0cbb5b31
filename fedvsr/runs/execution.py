"""A run while it is executed: rounds, scores, records, checkpoints, and the trained network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import numpy as np

from fedvsr import __version__, algorithms, models
from fedvsr.algorithms.base import start
from fedvsr.data.split import Split
from fedvsr.determinism import scoped_torch
from fedvsr.environment import git_commit
from fedvsr.errors import UserError
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.executors import Clients, Executor, Fault, Pending, Scorer
from fedvsr.federation.privacy import epsilon
from fedvsr.federation.rounds import (
    ClientFinished,
    RoundFinished,
    RoundSetup,
    RunState,
    run_rounds,
)
from fedvsr.federation.sampling import FederationConfig
from fedvsr.files import DISK_FULL, remove_temporaries, replacing
from fedvsr.inference.evaluate import Evaluator
from fedvsr.inference.scores import Scored
from fedvsr.layout import NOT_SHARED
from fedvsr.limits import ClusterGoneError
from fedvsr.messages import LostError
from fedvsr.models.origin import joined, parts, weights_source
from fedvsr.params import FloatVector, ParamTable, flatten, load_flat
from fedvsr.recording import RunRecords
from fedvsr.records import read_run
from fedvsr.runs import rows
from fedvsr.runs.audit import missing_rows, set_aside_damaged
from fedvsr.runs.events import Event, EventLog, RoundRecorded, RunStarted
from fedvsr.runs.logged import RunLoggers
from fedvsr.runs.notes import notes_of
from fedvsr.runs.pace import round_s
from fedvsr.runs.run import Run, locked
from fedvsr.seeding import derive_seed
from fedvsr.training import checkpoint
from fedvsr.training.requirements import model_spec
from fedvsr.training.roles import layout_of


def execute(
    run: Run,
    split: Split,
    make_executor: Callable[[Clients], Executor],
    patience_s: float = 1.0,
) -> Iterator[Event]:
    """Run to the end, from the newest checkpoint if there is one. Yields recorded events.

    Whatever ends the run early, the last finished round is saved and the run's row says how it
    ended.

    Args:
        run: the run; one process at a time executes it.
        split: its clips.
        make_executor: makes what trains the clients.
        patience_s: how long to wait for another process that still executes the run.

    Raises:
        UserError: another process writes this run, the disk is full, or training failed for a
            reason that the user can fix.
    """
    with locked(run.folder, patience_s):
        execution = Execution(run, split, make_executor)
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


@dataclass(frozen=True)
class _Unscored:
    """A trained round that waits for its scores: pairs of a client id and its scores."""

    event: RoundRecorded
    pending: list[tuple[int | None, Pending]]

    def ready(self) -> bool:
        return all(pending.ready() for _, pending in self.pending)


class Execution:
    """A run that is being executed.

    Training continues while a round is scored. So a round's row is written when the round is
    trained, and its scores are added when they arrive. A checkpoint is saved only after the scores
    of the round before it are written; a resumed run makes the last scores if they are missing.

    Args:
        run: the run.
        split: its clips.
        make_executor: makes what trains the clients.
    """

    def __init__(
        self, run: Run, split: Split, make_executor: Callable[[Clients], Executor]
    ) -> None:
        config = run.config
        self.run, self.split, self.make_executor = run, split, make_executor
        self.executor_name = self.device_name = ""
        self.checkpoints = run.folder / "checkpoints"
        with scoped_torch(derive_seed(config.seed, "init"), 1):
            self.network = models.build_fresh(config.model)
        self.table = ParamTable.of(self.network)
        self.algorithm = algorithms.build(config.algorithm)
        spec = model_spec(config.model)
        self.layout = layout_of(self.network, spec, config.algorithm, config.local)
        self.clients = Clients(
            config.model,
            config.algorithm,
            config.local,
            split.of_clients.mapped(run.folder),
            config.update,
        )
        if self.algorithm.pooled:
            self.clients = self.clients.pooled(config.federation.clients_per_round)
        self.states = ClientStates(self.checkpoints, config.cluster.client_state_bytes)
        # First values of the parameters that are not shared. Set by `_initial_state`.
        self.rest = np.empty(0, np.float32)
        # Set by `events`.
        self.scorer: Scorer
        self.state: RunState | None = None
        self.saved_round = 0
        self.unscored: _Unscored | None = None
        # By client: the round of its newest parameters, and the scores of that network.
        self.personal = dict[int | None, tuple[int, Pending]]()
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
        rest = None if self.layout.all_shared else self.rest
        executor = self.make_executor(replace(self.clients, rest=rest))
        try:
            self.scorer = executor.start_scorer(
                partial(
                    Evaluator,
                    config.model,
                    config.evaluation,
                    self.split.test,
                    self.split.test_sets,
                )
            )
            self.executor_name, self.device_name = executor.name, self.scorer.device_name
            self.write_run("running")
            self.records.write_partition(rows.partition_rows(self.split.of_clients))
            notes = () if saved.state else notes_of(config, self.split)
            yield self._started((*saved.damaged, *lost, *notes))
            for fault in self._faults_before(state.round_idx, saved.damaged, lost):
                yield self.record_fault(fault)
            yield from self._whole(state, executor)
            self._finish(self.state.params)
        finally:
            executor.close()

    def _whole(self, state: RunState, executor: Executor) -> Iterator[Event]:
        """The remaining rounds; again from the checkpoint if what a client remembers is lost."""
        for retries_left in range(self.run.config.cluster.max_retries, -1, -1):
            if not self.records.has_scores(state.round_idx, self._is_scored(state.round_idx)):
                self._begin_scoring(state)
            try:
                yield from self._rounds(state, executor)
                yield from self._settle()
                return
            except UserError as error:
                # The round before is whole with its scores, which a sweep waits for: without any,
                # it would try again what fails the same way. The error says more than theirs would.
                if not isinstance(error, ClusterGoneError):
                    with suppress(UserError, RuntimeError):
                        yield from self._settle()
                raise
            except LostError as error:
                lost = f"what client {error.client_id} remembered was lost with its node: {error}"
                if not retries_left:
                    raise UserError(f"{lost}; give the same command with --resume") from error
                yield from self._settle()
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
            whole = flatten(self.network)
        else:
            whole = saved.server["params"]
        self.rest = self.layout.take(whole, *NOT_SHARED)
        params = self.layout.take(whole, "shared")
        if saved is None:
            return RunState(0, start(self.algorithm, params), {})
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
            yield from self._settle_if_ready()
            if isinstance(event, Fault):
                yield self.record_fault(event)
            elif isinstance(event, ClientFinished):
                yield event
            else:
                yield from self._settle()
                self.records.write_round(
                    event.state.round_idx,
                    rows.round_row(event, self._epsilon(event.state.round_idx)),
                    rows.client_rows(event),
                )
                self.state = event.state
                last = event.state.round_idx == config.federation.num_rounds
                if last or event.state.round_idx % config.checkpoint.every_rounds == 0:
                    self.save()
                self._begin_scoring(event.state, event)
                yield from self._settle_if_ready()

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
        server = {**state.server, "params": self.layout.whole(state.params, self.rest)}
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
        counts = {
            "num_params": self.table.size,
            "num_shared_params": self.layout.table_of("shared").size,
            "num_clients": len(self.clients.clips),
            "num_train_clips": len(self.split.train),
            "num_test_clips": self.split.num_test_clips,
        }
        self.records.write_run(
            {
                **rows.run_row(self.run.config),
                **counts,
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
        evaluated = {r for r in range(saved.round_idx) if self.split.test and self._is_scored(r)}
        return missing_rows(self.run.folder, saved.round_idx, evaluated)

    def _faults_before(
        self, round_idx: int, damaged: Sequence[str], lost: Sequence[str]
    ) -> Iterator[Fault]:
        """What went wrong before this process took over."""
        for message in damaged:
            yield Fault(round_idx, None, "checkpoint", message, final=True)
        for message in lost:
            yield Fault(round_idx, None, "table", message, final=True)
        if self.died_before:
            message = f"the process that executed this run died; resumed after round {round_idx}"
            yield Fault(round_idx + 1, None, "driver", message)

    def record_fault(self, fault: Fault) -> Fault:
        """Write a fault's row, and return the fault as an event."""
        row = {f.name: getattr(fault, f.name) for f in fields(fault) if f.name != "error"}
        self.records.add_fault(row)
        # The exception may not be picklable, and events travel between processes.
        return replace(fault, error=None)

    # Scores

    def _begin_scoring(self, state: RunState, finished: RoundFinished | None = None) -> None:
        """Start to score a state, if its round is due.

        Args:
            state: what to score.
            finished: the round that made it; None before training, and in a resumed run whose last
                scores were lost.
        """
        round_idx, due = state.round_idx, self._is_scored(state.round_idx)
        federation = self.run.config.federation.model_dump()
        if finished is None:
            self.records.begin_round(round_idx, self._epsilon(round_idx))
        event = RoundRecorded(
            round_idx,
            [report.client_id for report in finished.reports] if finished else [],
            rows.mean([o.report.loss for o in finished.outcomes if o.accepted])
            if finished
            else None,
            [],
            round_s(finished.gap_s, finished.train_s, rows.first_step_s(finished))
            if finished
            else 0.0,
            rows.slot_utilisation(finished) if finished else None,
            **(rows.shortfall(finished, federation, len(self.clients.clips)) if finished else {}),
        )
        self.unscored = _Unscored(event, self._score(state) if due else [])

    def _is_scored(self, round_idx: int) -> bool:
        """Whether a round's network is scored; that of the last round always is."""
        last = self.run.config.federation.num_rounds
        return round_idx % self.run.config.evaluation.every_rounds == 0 or round_idx == last

    def _settle_if_ready(self) -> Iterator[RoundRecorded | Fault]:
        """Write the scores of the round before, if they have arrived."""
        if self.unscored and self.unscored.ready():
            yield from self._settle()

    def _settle(self) -> Iterator[RoundRecorded | Fault]:
        """Wait for the pending scores and write them: the round's record is then complete."""
        if self.unscored is None:
            return
        unscored, self.unscored = self.unscored, None
        event = unscored.event
        results = [(client_id, pending.result()) for client_id, pending in unscored.pending]
        for kind, message in self.scorer.take_faults():
            yield self.record_fault(Fault(event.round_idx, None, kind, message))
        # Before the scores: a round with scores in the tables is not scored again.
        for _, scored in results:
            self._save_pictures(scored)
        scores = [(client_id, score) for client_id, scored in results for score in scored.scores]
        score_rows = [{"client_id": client_id, **score.row()} for client_id, score in scores]
        evaluate_s = sum(scored.wall_s for _, scored in results)
        means = rows.mean_row([score for _, score in scores])
        self.records.write_scores(event.round_idx, {**means, "evaluate_s": evaluate_s}, score_rows)
        yield replace(event, scores=[s for _, s in scores], wall_s=event.wall_s or evaluate_s)

    def _score(self, state: RunState) -> list[tuple[int | None, Pending]]:
        """Scores of the global network or, for personal methods, of every client's own."""
        if not self.algorithm.personal:
            whole = self.layout.whole(state.params, self.rest)
            return [(None, self.scorer.score(whole))]
        pending = list[tuple[int | None, Pending]]()
        for client_id in range(len(self.clients.clips)):
            trained_in = self.states.round_of(client_id)
            # Clients that have not trained yet share the network that all start from.
            key = None if trained_in is None else client_id
            version = trained_in or 0
            if self.algorithm.own_network is None or (trained_in is None and self.algorithm.upload):
                # The shared part, with which clients begin, changes in every round.
                version = state.round_idx
            known = self.personal.get(key)
            if known is None or known[0] != version:
                params = self._params_of(client_id, state.params)
                # The pictures of a personal method are the first client's.
                pending_scores = self.scorer.score(params, pictures=client_id == 0)
                known = self.personal[key] = version, pending_scores
            pending.append((client_id, known[1]))
        return pending

    def _epsilon(self, num_rounds: int) -> float | None:
        """Privacy loss epsilon after a number of rounds; None without noise."""
        config = self.run.config
        if not config.update.noise_multiplier:
            return None
        return epsilon(config.update, config.federation, config.data.num_clients, num_rounds)

    # The end

    def _params_of(self, client_id: int, params: FloatVector) -> FloatVector:
        """All parameters (P,) of a client's network; `params` are the server's shared ones."""
        state = self.states.get(client_id)
        if self.algorithm.own_network:
            params = state.get(self.algorithm.own_network, params)
        return self.layout.whole(params, self.rest, state.get("own"))

    def _finish(self, params: FloatVector) -> None:
        """Save the trained network, then mark the run as finished.

        A personal method saves every client's network.
        """
        if self.algorithm.personal:
            for client_id in reversed(range(len(self.clients.clips))):
                own = self._params_of(client_id, params)
                self._save_network(own, checkpoint.client_file(self.run.folder, client_id))
            params = own
        else:
            params = self.layout.whole(params, self.rest)
            self._save_network(params, self.run.folder / "model.safetensors")
        if not any((self.run.folder / "frames").glob("*.png")):
            # An earlier version of the program has scored it, which kept pictures only now.
            pending = self.scorer.score(params)
            self._save_pictures(pending.result())
        self.write_run("finished")

    def _save_pictures(self, scored: Scored) -> None:
        """Keep a frame of each test clip as the network that was scored makes it."""
        frames = self.run.folder / "frames"
        frames.mkdir(exist_ok=True)
        for name, content in scored.pictures.items():
            with replacing(frames / name) as aside:
                aside.write_bytes(content)

    def _save_network(self, params: FloatVector, path: Path) -> None:
        load_flat(self.network, params)
        path.parent.mkdir(exist_ok=True)
        checkpoint.save_model(path, self.network, self.run.config.model, self.weights_source)
