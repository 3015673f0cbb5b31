"""What fills a run's folder: rounds, scores, records, checkpoints, and the trained network."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedvsr import __version__, algorithms, models
from fedvsr.algorithms.base import start
from fedvsr.config import ExperimentConfig
from fedvsr.data.split import Split
from fedvsr.determinism import scoped_torch
from fedvsr.environment import git_commit, versions
from fedvsr.errors import UserError
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.executors import Clients, Executor, Fault, Pending, Scorer
from fedvsr.federation.privacy import delta_of, epsilon
from fedvsr.federation.rounds import (
    ClientFinished,
    RoundFinished,
    RoundSetup,
    RunState,
    run_rounds,
)
from fedvsr.federation.sampling import FederationConfig
from fedvsr.files import DISK_FULL, replacing
from fedvsr.inference.evaluate import Evaluator
from fedvsr.params import FloatVector, ParamTable, flatten, load_flat
from fedvsr.records import Row, RunRecords, read_run
from fedvsr.runs.events import Event, EventLog, RoundRecorded, RunStarted
from fedvsr.runs.run import Run, locked
from fedvsr.seeding import derive_seed
from fedvsr.training import checkpoint


@dataclass(frozen=True)
class _Unscored:
    """A round that is trained and waits for its scores, by client."""

    event: RoundRecorded
    pending: list[tuple[int | None, Pending]]

    def ready(self) -> bool:
        return all(pending.ready() for _, pending in self.pending)


def execute(
    run: Run, split: Split, make_executor: Callable[[Clients], Executor]
) -> Iterator[Event]:
    """Run, or go on from the newest checkpoint, to the end; a round is recorded before its event.

    Raises:
        UserError: another process writes this run, or training failed for a reason to mend.
    """
    with locked(run.folder, patience_s=1.0):
        this = Execution(run, split, make_executor)
        try:
            with EventLog(run.folder / "events.jsonl", run.run_id) as log:
                for event in this.events():
                    log.write(event)
                    yield event
        except (GeneratorExit, KeyboardInterrupt):
            this.save()
            this.write_run("interrupted")
            raise
        except BaseException as error:
            full = isinstance(error, OSError) and error.errno in DISK_FULL
            # A disk that is full takes no word of it; the run then reads as stopped.
            with suppress(OSError):
                this.save()
                this.write_run("failed", error=str(error))
            if full:
                raise UserError(
                    f"no room left on the disk of {run.folder}; make some, and go on with --resume"
                ) from error
            raise


class Execution:
    """A run under way.

    Training goes on while a round is scored. So a round's row is written when it is trained, and
    its scores are added when they are there; a checkpoint is saved only when the scores of the
    round before it are, and a resumed run makes the last ones if they are missing.
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
        self.num_params = sum(parameter.numel() for parameter in self.network.parameters())
        self.algorithm = algorithms.build(config.algorithm)
        self.clients = Clients(
            config.model,
            config.algorithm,
            config.local,
            split.clients,
            config.update,
        )
        if self.algorithm.pooled:
            self.clients = self.clients.pooled(config.federation.clients_per_round)
        self.states = ClientStates(self.checkpoints, config.cluster.client_state_bytes)
        # Set when the run starts; what is not yet on disk.
        self.scorer: Scorer
        self.table = ParamTable.of(self.network)
        self.state: RunState | None = None
        self.saved_round = 0
        self.unscored: _Unscored | None = None
        # By client, the round of its network and that network's scores.
        self.personal = dict[int | None, tuple[int, Pending]]()
        identity = {
            "run_id": run.run_id,
            "config_hash": config.config_hash(),
            "seed": config.seed,
            "fedvsr_version": __version__,
            "git_commit": git_commit(),
            "num_overlap": len(split.overlap),
        }
        self.records = RunRecords(run.folder, identity)
        before = read_run(run.folder)
        self.started_at = before["started_at"] if before else datetime.now(timezone.utc)
        self.died_before = before is not None and before["status"] == "running"

    def events(self) -> Iterator[Event]:
        """Run what is left of the run; what an event tells is on disk before it is given out."""
        config = self.run.config
        clients, federation = self.clients, config.federation
        if self.algorithm.pooled:
            federation = FederationConfig(num_rounds=federation.num_rounds, clients_per_round=1)
        saved = checkpoint.latest(self.checkpoints, self.table, config.config_hash())
        if saved.state is None:
            models.load_start(self.network, config.model)
            state = RunState(0, start(self.algorithm, flatten(self.network)), {})
        else:
            state = RunState(saved.state.round_idx, saved.state.server, saved.state.losses)
            self.states.restore(saved.state.clients)
        self.state, self.saved_round = state, state.round_idx
        executor = self.make_executor(clients)
        try:
            self.scorer = executor.start_scorer(
                partial(Evaluator, config.model, config.evaluation, self.split.test)
            )
            self.executor_name, self.device_name = executor.name, self.scorer.device_name
            self.write_run("running")
            self.records.write_partition(_partition_rows(self.split))
            yield RunStarted(
                self.run.run_id,
                state.round_idx,
                config.federation.num_rounds,
                self.num_params,
                len(clients.clips),
                self.device_name,
                (*saved.damaged, *(_notes(config, self.split) if saved.state is None else ())),
            )
            for fault in self._faults_before(state.round_idx, saved.damaged):
                yield self._fault(fault)
            if saved.state is None or not self.records.has_scores(state.round_idx):
                self._begin_scoring(state)
            setup = RoundSetup(
                self.algorithm,
                federation,
                config.update,
                sizes=[sum(clip.num_frames for clip in own) for own in clients.clips],
                tensors=self.table.slices(),
                seed=config.seed,
            )
            rounds = run_rounds(state, setup, executor, self.states)
            started = time.perf_counter()
            for event in rounds:
                if self.unscored and self.unscored.ready():
                    yield from self._settle()
                if isinstance(event, Fault):
                    yield self._fault(event)
                elif isinstance(event, ClientFinished):
                    yield event
                else:
                    yield from self._settle()
                    now = time.perf_counter()
                    self._record(event)
                    self.state = event.state
                    last = event.state.round_idx == config.federation.num_rounds
                    if last or event.state.round_idx % config.checkpoint.every_rounds == 0:
                        self.save()
                    self._begin_scoring(event.state, event, now - started)
                    started = now
                    if self.unscored and self.unscored.ready():
                        yield from self._settle()
            yield from self._settle()
            self._finish(self.state.params)
        finally:
            executor.close()

    def save(self) -> None:
        """Save the state of the last finished round, unless that has been done."""
        if self.state is None or self.state.round_idx == self.saved_round:
            return
        if self.states.newest_round > self.state.round_idx:
            # Stopped while the next round was summed: what clients remember is of that round
            # already, and would not fit. The checkpoint before this stands.
            return
        state, config = self.state, self.run.config
        # The clients' files first: a checkpoint refers to them.
        now = checkpoint.Saved(state.round_idx, state.server, self.states.save(), state.losses)
        left = checkpoint.save(self.checkpoints, now, self.table, config.config_hash())
        self.states.clean(left)
        self.saved_round = state.round_idx

    def _faults_before(self, round_idx: int, damaged: Sequence[str]) -> Iterator[Fault]:
        """What went wrong before this process took over."""
        for message in damaged:
            yield Fault(round_idx, None, "checkpoint", message, final=True)
        if self.died_before:
            message = f"the process that ran this died; it goes on after round {round_idx}"
            yield Fault(round_idx + 1, None, "driver", message)

    def _fault(self, fault: Fault) -> Fault:
        row = {f.name: getattr(fault, f.name) for f in fields(fault) if f.name != "error"}
        self.records.add_fault(row)
        # An exception may not travel.
        return replace(fault, error=None)

    def _save_network(self, params: FloatVector, path: Path) -> None:
        load_flat(self.network, params)
        path.parent.mkdir(exist_ok=True)
        checkpoint.save_model(path, self.network, self.run.config.model)

    def write_run(self, status: str, error: str | None = None) -> None:
        """Write the run's own row."""
        config = self.run.config
        self.records.write_run(
            {
                "name": config.name,
                "status": status,
                "model": config.model.name,
                "algorithm": config.algorithm.name,
                "executor": self.executor_name,
                "num_params": self.num_params,
                "num_rounds": config.federation.num_rounds,
                "num_clients": len(self.clients.clips),
                "num_train_clips": len(self.split.train),
                "num_test_clips": len(self.split.test),
                **self.records.last_evaluation(),
                "started_at": self.started_at,
                "updated_at": datetime.now(timezone.utc),
                "device": self.device_name,
                "versions": json.dumps(versions()),
                "config": config.model_dump_json(),
                "error": error,
            }
        )

    def _record(self, finished: RoundFinished) -> None:
        """Write what a round's training was; its scores follow."""
        sampled = finished.reports
        reports = [report for report in sampled if report.finite]
        round_idx = finished.state.round_idx
        row: dict[str, Any] = {
            "num_sampled": len(sampled) + finished.num_failed,
            "num_rejected": len(sampled) - len(reports),
            "num_failed": finished.num_failed,
            "num_online": finished.num_online,
            "loss": _mean([report.loss for report in reports]),
            "vsr_loss": _mean([report.vsr_loss for report in reports]),
            "download_bytes": finished.download_bytes,
            "upload_bytes": sum(report.upload_bytes for report in sampled),
            "epsilon": self._epsilon(round_idx),
            "gap_s": finished.gap_s,
            "train_s": finished.train_s,
            "aggregate_s": finished.aggregate_s,
        }
        self.records.write_round(round_idx, row, _client_rows(finished))

    def _begin_scoring(
        self, state: RunState, finished: RoundFinished | None = None, wall_s: float = 0.0
    ) -> None:
        evaluation, round_idx = self.run.config.evaluation, state.round_idx
        due = round_idx % evaluation.every_rounds == 0
        due = due or round_idx == self.run.config.federation.num_rounds
        if finished is None:
            # Before training, or a resumed run whose last scores were lost.
            self.records.begin_round(round_idx, self._epsilon(round_idx))
        self.unscored = _Unscored(
            RoundRecorded(
                round_idx,
                [report.client_id for report in finished.reports] if finished else [],
                _mean([r.loss for r in finished.reports if r.finite]) if finished else None,
                [],
                wall_s,
                _utilisation(finished) if finished else None,
            ),
            self._score(state) if due else [],
        )

    def _settle(self) -> Iterator[RoundRecorded | Fault]:
        """Wait for the scores under way, and write them: now the round is recorded whole."""
        if self.unscored is None:
            return
        waiting, self.unscored = self.unscored, None
        event = waiting.event
        results = [(client_id, *pending.result()) for client_id, pending in waiting.pending]
        for message in self.scorer.take_faults():
            yield self._fault(Fault(event.round_idx, None, "died", message))
        scores = [(client_id, score) for client_id, found, _ in results for score in found]
        channel = "y" if self.run.config.evaluation.luma else "rgb"
        rows = [{"channel": channel, "client_id": i, **asdict(score)} for i, score in scores]
        means = {
            "psnr_db": _mean([score.psnr_db for _, score in scores]),
            "ssim": _mean([score.ssim for _, score in scores]),
        }
        evaluate_s = sum(wall_s for _, _, wall_s in results)
        self.records.write_scores(event.round_idx, {**means, "evaluate_s": evaluate_s}, rows)
        yield replace(event, scores=[s for _, s in scores], wall_s=event.wall_s or evaluate_s)

    def _score(self, state: RunState) -> list[tuple[int | None, Pending]]:
        """Scores of the global network, or of every client's own."""
        if not self.algorithm.personal:
            return [(None, self.scorer.score(state.params))]
        found = list[tuple[int | None, Pending]]()
        for client_id in range(len(self.clients.clips)):
            trained = self.states.round_of(client_id)
            # Those that have not trained yet share the network that all start from.
            key = None if trained is None else client_id
            known = self.personal.get(key)
            if known is None or known[0] != (trained or 0):
                pending = self.scorer.score(self._network_of(client_id, state.params))
                known = self.personal[key] = trained or 0, pending
            found.append((client_id, known[1]))
        return found

    def _epsilon(self, num_rounds: int) -> float | None:
        config = self.run.config
        if not config.update.noise_multiplier:
            return None
        return epsilon(config.update, config.federation, config.data.num_clients, num_rounds)

    def _network_of(self, client_id: int, params: FloatVector) -> FloatVector:
        return self.states.get(client_id).get("params", params)

    def _finish(self, params: FloatVector) -> None:
        """Save what was trained and one picture a test clip, then call the run finished.

        Where each client has a network, all are saved, and the pictures are the first one's.
        """
        if self.algorithm.personal:
            for client_id in reversed(range(len(self.clients.clips))):
                own = self._network_of(client_id, params)
                self._save_network(own, checkpoint.client_file(self.run.folder, client_id))
            params = own
        else:
            self._save_network(params, self.run.folder / "model.safetensors")
        frames = self.run.folder / "frames"
        frames.mkdir(exist_ok=True)
        for clip in self.split.test:
            middle = min(clip.num_frames, self.run.config.evaluation.max_frames or 10**9) // 2
            for kind, picture in self.scorer.pictures(params, clip, middle).items():
                with replacing(frames / f"{clip.clip_id}_{middle:03d}_{kind}.png") as aside:
                    Image.fromarray(picture).save(aside, format="png")
        self.write_run("finished")


def _notes(config: ExperimentConfig, split: Split) -> tuple[str, ...]:
    notes: tuple[str, ...] = config.algorithm.notes()
    if split.overlap:
        notes += (
            f"clients train on {len(split.overlap)} of the test clips: their scores say nothing "
            "of other videos",
        )
    if config.update.noise_multiplier:
        num_clients = config.data.num_clients
        spent = epsilon(config.update, config.federation, num_clients, config.federation.num_rounds)
        notes += (
            f"after all rounds a client is protected with epsilon = {spent:.3g} at delta = "
            f"{delta_of(config.update, num_clients):.2g}; the noise follows the seed, so keep the "
            "seed, this record and the reported losses to yourself",
        )
    if not models.flow_from_scratch(config.model):
        return notes
    note = "optical flow starts from scratch; model.flow_weights=PATH loads released SpyNet weights"
    if config.local.freeze_steps:
        note += (
            f", and local.freeze_steps = {config.local.freeze_steps} keeps it untrained as long; "
            "set it to 0 without them"
        )
    return (note, *notes)


def _partition_rows(split: Split) -> list[Row]:
    return [
        {
            "client_id": client_id,
            "clip_id": clip.clip_id,
            "label": clip.label,
            "num_frames": clip.num_frames,
            "height": clip.height,
            "width": clip.width,
            "sha256": clip.sha256 or None,
        }
        for client_id, own in enumerate(split.clients)
        for clip in own
    ]


def _utilisation(finished: RoundFinished) -> float | None:
    slots = {outcome.slot for outcome in finished.outcomes} - {None}
    worked_s = sum(report.train_s for report in finished.reports)
    return worked_s / (len(slots) * finished.train_s) if slots else None


def _client_rows(finished: RoundFinished) -> list[Row]:
    return [
        {
            "client_id": report.client_id,
            "position": position,
            "num_samples": report.num_samples,
            "num_steps": report.num_steps,
            "loss": report.loss if report.finite else None,
            "vsr_loss": report.vsr_loss if report.finite else None,
            "rejected": not report.finite,
            "weight": finished.weights[position] if finished.weights else None,
            "first_loss": report.first_loss,
            "lr": report.lr,
            "update_norm": report.update_norm if report.finite else None,
            "upload_bytes": report.upload_bytes,
            "attempts": outcome.attempts,
            "node": outcome.node,
            "slot": outcome.slot,
            "started_s": report.started_at - finished.started_at,
            "train_s": report.train_s,
            "input_wait_s": report.input_wait_s,
        }
        for position, (outcome, report) in enumerate(
            zip(finished.outcomes, finished.reports, strict=True)
        )
    ]


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
