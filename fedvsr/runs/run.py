"""A run's identity: its folder, its lock, and its status."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import yaml

from fedvsr.config import ExperimentConfig
from fedvsr.errors import UserError
from fedvsr.files import replacing
from fedvsr.records import read_run


@dataclass(frozen=True)
class Run:
    """A run's identity. Its folder is `<out>/<run_id>`."""

    run_id: str
    folder: Path
    config: ExperimentConfig


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
        with locked(folder):
            return "stopped"
    except UserError:
        return "running"


@contextmanager
def locked(folder: Path, patience_s: float = 0.0) -> Iterator[None]:
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
