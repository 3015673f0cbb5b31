"""One experiment: a run's folder, and the stream of events that fills it."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

import yaml

from fedvsr import models
from fedvsr.config import ExperimentConfig
from fedvsr.data.split import Split, prepare
from fedvsr.data.videos import Progress
from fedvsr.errors import UserError
from fedvsr.event_log import EventLog
from fedvsr.events import Event, RoundRecorded, RunStarted, measure
from fedvsr.execution import Execution, Run
from fedvsr.federation.executors import Clients, Executor
from fedvsr.files import DISK_FULL, replacing
from fedvsr.params import ParamTable
from fedvsr.records import read_run
from fedvsr.training.local import require_room

__all__ = [
    "Event",
    "RoundRecorded",
    "Run",
    "RunStarted",
    "create_run",
    "execute",
    "find_run",
    "measure",
    "prepare_data",
    "run_status",
]


def create_run(config: ExperimentConfig, out: Path) -> Run:
    """Make the folder of a new run and write the resolved configuration into it."""
    now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    run_id = stem = f"{config.name}-{now}-{config.config_hash()[:6]}"
    out.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, 100):
        try:
            (out / run_id).mkdir()
            break
        except FileExistsError:
            run_id = f"{stem}-{attempt}"
    run = Run(run_id, (out / run_id).resolve(), config)
    with replacing(run.folder / "config.yaml") as aside:
        aside.write_text(config.to_yaml())
    return run


def find_run(config: ExperimentConfig, out: Path) -> Run:
    """The newest run of this configuration under `out` that has not finished.

    Raises:
        UserError: there is none.
    """
    wanted, finished = config.config_hash(), list[str]()
    folders = (path.parent for path in out.glob("*/config.yaml"))
    for folder in sorted(folders, key=lambda path: path.stat().st_ctime, reverse=True):
        stored = ExperimentConfig.model_validate(
            yaml.safe_load((folder / "config.yaml").read_text())
        )
        if stored.config_hash() == wanted:
            if run_status(folder) != "finished":
                return Run(folder.name, folder.resolve(), config)
            finished.append(folder.name)
    if finished:
        raise UserError(
            f"{finished[0]} has finished with this configuration; leave --resume out to run it anew"
        )
    raise UserError(
        f"no run of this configuration under {out}/ to resume; leave --resume out to start one"
    )


def run_status(folder: Path) -> str:
    """`finished`, `failed`, `interrupted`, `running`, or `stopped`, if its process died."""
    row = read_run(folder)
    status = str(row["status"]) if row else "stopped"
    if status != "running":
        return status
    try:
        with _locked(folder):
            return "stopped"
    except UserError:
        return "running"


def prepare_data(config: ExperimentConfig, progress: Progress) -> Split:
    """Cut the videos, or find them cut, and check that the crop fits.

    Raises:
        UserError: see `fedvsr.data.split.prepare` and `require_room`.
    """
    split = prepare(config.data, config.seed, progress)
    require_room(split.train, config.local)
    return split


def object_store_bytes(config: ExperimentConfig) -> int:
    """Room for a round's vectors: the global one, and each client's, twice over, and some spare."""
    size = 4 * ParamTable.of(models.build_fresh(config.model)).size
    federation = config.federation
    poisson = federation.sampling == "poisson"
    most = config.data.num_clients if poisson else federation.clients_per_round
    return 2 * size * (1 + most) + (256 << 20)


def execute(
    run: Run, split: Split, make_executor: Callable[[Clients], Executor]
) -> Iterator[Event]:
    """Run, or go on from the newest checkpoint, to the end; a round is recorded before its event.

    Raises:
        UserError: another process writes this run, or training failed for a reason to mend.
    """
    with _locked(run.folder, patience_s=1.0):
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


@contextmanager
def _locked(folder: Path, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the run's lock, which the system drops when the process ends, however it ends.

    Whoever asks for a run's status holds it for an instant: `patience_s` outlasts that.
    """
    deadline = time.monotonic() + patience_s
    with (folder / ".lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise UserError(
                        f"another process is writing {folder}; wait for it, or stop it"
                    ) from None
            time.sleep(0.02)
        yield
