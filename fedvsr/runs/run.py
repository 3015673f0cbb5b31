"""A run's identity: its folder, its lock and its status."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from fedvsr import yaml12
from fedvsr.errors import FileError, UserError, skipping
from fedvsr.files import remove_temporaries, replacing
from fedvsr.records import read_run

# `run_status` serves `fedvsr list` and `show`, which load no network.
if TYPE_CHECKING:
    from fedvsr.config import ExperimentConfig

_LOCK = ".lock"


@dataclass(frozen=True)
class Run:
    """A run's identity. Its folder is `<out>/<run_id>`."""

    run_id: str
    folder: Path
    config: ExperimentConfig


def create_run(config: ExperimentConfig, out: Path) -> Run:
    """Make the folder of a new run, with the resolved configuration in it.

    The run's id is the configuration's name, the time and the configuration's hash; runs of the
    same second are numbered.
    """
    now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    stem = f"{config.name}-{now}-{config.config_hash()[:6]}"
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    for number in count():
        run_id = f"{stem}-{number}" if number else stem
        try:
            (out / run_id).mkdir()
        except FileExistsError:
            continue
        break
    return open_run(config, out / run_id)


def open_run(config: ExperimentConfig, folder: Path) -> Run:
    """The run in a folder. The folder and its `config.yaml` are made if they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.yaml").exists():
        with replacing(folder / "config.yaml") as aside:
            aside.write_text(config.to_yaml())
    return Run(folder.name, folder.resolve(), config)


def find_run(config: ExperimentConfig, out: Path) -> Run:
    """The newest unfinished run of a configuration under `out`.

    A folder whose `config.yaml` is foreign, broken or of another version is skipped, and named.

    Raises:
        UserError: there is none.
    """
    wanted, finished = config.config_hash(), list[str]()
    folders = (path.parent for path in out.glob("*/config.yaml"))
    for folder in sorted(folders, key=lambda path: path.stat().st_ctime, reverse=True):
        with skipping(folder):
            if stored_config(folder).config_hash() == wanted:
                if not _is_finished(folder):
                    return Run(folder.name, folder.resolve(), config)
                finished.append(folder.name)
    if finished:
        raise UserError(
            f"the run {finished[0]} of this configuration has finished; leave --resume out to "
            "start a new one"
        )
    raise UserError(
        f"no run of this configuration under {out}/ to resume; leave --resume out to start one"
    )


def stored_config(folder: Path) -> ExperimentConfig:
    """The configuration in a run's folder.

    Raises:
        FileError: it is damaged, foreign or of another version.
    """
    from fedvsr.config import ExperimentConfig

    path = folder / "config.yaml"
    try:
        return ExperimentConfig.model_validate(yaml12.load_file(path))
    except (ValueError, RecursionError) as error:
        raise FileError(path, "is no configuration of this version of fedvsr") from error


def _is_finished(folder: Path) -> bool:
    try:
        return run_status(folder) == "finished"
    except UserError:
        # Its row is damaged: resuming reads its checkpoints and writes the row again.
        return False


def run_status(folder: Path) -> str:
    """`finished`, `failed`, `interrupted`, `running`, or `stopped` if its process died."""
    row = read_run(folder)
    status = str(row["status"]) if row else "stopped"
    if status != "running":
        return status
    return "running" if _is_locked(folder) else "stopped"


def _is_locked(folder: Path) -> bool:
    """Whether a process holds a run's lock. It writes nothing: results may be read-only."""
    try:
        with (folder / _LOCK).open("rb") as file:
            # Shared, so that looks do not see each other; released as the file is closed.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # No process has locked it yet, or the file system has no locks.
        return False
    return False


def remove_leftovers(out: Path) -> None:
    """Remove the temporary files of runs under `out` whose processes were killed."""
    temporaries = (path for pattern in ("*/.*.tmp", "*/*/.*.tmp") for path in out.glob(pattern))
    for folder in {out / path.relative_to(out).parts[0] for path in temporaries}:
        # A run that was just created has no lock yet.
        if (folder / _LOCK).exists():
            with suppress(UserError), locked(folder):
                remove_temporaries(folder)


@contextmanager
def locked(folder: Path, patience_s: float = 0.0) -> Iterator[None]:
    """Hold a run's lock. The system releases it when the process ends, however it ends.

    Args:
        folder: the run's.
        patience_s: how long to wait for the lock. `run_status` holds it for an instant, which a
            process that wants to execute the run must outlast.

    Raises:
        UserError: another process holds the lock.
    """
    # Not per thread: a driver actor may be asked for the next event by another thread.
    lock = FileLock(folder / _LOCK, thread_local=False)
    try:
        lock.acquire(timeout=patience_s, poll_interval=0.02)
    except Timeout:
        raise UserError(f"another process is writing {folder}; wait for it, or stop it") from None
    except OSError as error:
        raise FileError(folder, f"cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()
