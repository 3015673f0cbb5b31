"""Which run or sweep a job works on, and the local copy of that folder."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import IO

from fedvsr.cluster.archive import (
    JOBS,
    SWEEP_FILE,
    is_folder,
    is_name,
    is_plain_file,
    sha256_of,
)
from fedvsr.errors import UserError
from fedvsr.files import replacing, replacing_folder
from fedvsr.labels import FILE as LABELS

# Environment variable in which `fedvsr submit` tells `fedvsr run` the job's id.
JOB_VARIABLE = "FEDVSR_JOB"
_HINT = "rename it, or fetch into another folder by --out"


def record_folder(out: Path, folder: str) -> None:
    """Record under `out` which folder this process's job works on; do nothing outside a job.

    `fedvsr fetch` reads the record: unlike the job's log, no client can write to it by printing.

    Args:
        out: the `--out` of the job.
        folder: a run's id, or `sweeps/NAME`.

    Raises:
        UserError: the environment variable holds no job's id.
    """
    if path := _record(out):
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as aside:
            aside.write_text(json.dumps({"folder": folder, "sha256": sha256_of(folder)}))


def forget_folder(out: Path) -> None:
    """Remove what `record_folder` has written."""
    if path := _record(out):
        path.unlink(missing_ok=True)


def _record(out: Path) -> Path | None:
    job_id = os.environ.get(JOB_VARIABLE)
    if job_id is None:
        return None
    if not is_name(job_id):
        raise UserError(f"{JOB_VARIABLE}={job_id!r} is not a job's id; `fedvsr submit` sets it")
    return out / JOBS / f"{job_id}.json"


def unpack(file: IO[bytes], folder: str, out: Path) -> Path:
    """Unpack the folder of a run or sweep to `<out>/<folder>`, and return that path.

    An earlier copy of the same is updated: its files that the archive lacks stay, and so do a run's
    tags and its note.

    Args:
        file: a zip file of the folder's files.
        folder: a run's id, or `sweeps/NAME`.
        out: local folder of runs; it exists.

    Raises:
        UserError: the archive is not such a folder, or `<out>/<folder>` is something other than
            an earlier copy of it.
    """
    if not is_folder(folder):
        raise UserError(
            f"the head sent {folder!r}, which is not the folder of a run or sweep; nothing was "
            "written"
        )
    target = out / folder
    needed = SWEEP_FILE if "/" in folder else "config.yaml"
    with replacing_folder(target) as aside:
        with zipfile.ZipFile(file) as zipped:
            for info in zipped.infolist():
                if not is_plain_file(info):
                    raise UserError(
                        f"the head sent {info.filename!r}, which is not a file of such a folder; "
                        "nothing was written"
                    )
            zipped.extractall(aside)
        if not (aside / needed).is_file():
            raise UserError(f"the head sent no {needed} with {folder}; nothing was written")
        if target.is_symlink() or target.exists():
            (_require_same_sweep if "/" in folder else _require_earlier_copy)(target, aside)
            _keep_rest(target, aside)
    return target


def _require_earlier_copy(target: Path, fetched: Path) -> None:
    """Check that a folder holds an earlier state of the run that was fetched.

    Raises:
        UserError: it does not; the message says why.
    """
    # pandas, which only a fetch needs: `fedvsr jobs` and `logs` stay quick.
    from fedvsr.records import read_run

    if target.is_symlink() or not (target / "config.yaml").is_file():
        raise UserError(f"{target} exists and is not a run's folder; {_HINT}")
    local, remote = read_run(target), read_run(fetched)
    configs = [(folder / "config.yaml").read_bytes() for folder in (target, fetched)]
    # A run gets its row when it starts: before, it has no results to lose.
    same = configs[0] == configs[1]
    if local is not None:
        same = remote is not None and all(
            local[key] == remote[key] for key in ("run_id", "config_hash", "started_at")
        )
    if not same:
        raise UserError(f"{target} holds another run than the job's; {_HINT}")
    if local and remote and local["updated_at"] > remote["updated_at"]:
        raise UserError(f"{target} is newer than the job's run: it was resumed here; {_HINT}")


def _require_same_sweep(target: Path, fetched: Path) -> None:
    """Check that a folder holds an earlier copy of the sweep that was fetched.

    Raises:
        UserError: it does not; the message says why.
    """
    if target.is_symlink() or not (target / SWEEP_FILE).is_file():
        raise UserError(f"{target} exists and is not a sweep's folder; {_HINT}")
    if (target / "tune").exists():
        raise UserError(f"{target} holds a sweep that was run here; {_HINT}")
    if (target / SWEEP_FILE).read_bytes() != (fetched / SWEEP_FILE).read_bytes():
        raise UserError(f"{target} holds another sweep than the job's; {_HINT}")


def _keep_rest(target: Path, aside: Path) -> None:
    """Take the files of `target` that `aside` lacks over into it, and the labels given here."""
    for labels in target.rglob(LABELS):
        (aside / labels.relative_to(target)).unlink(missing_ok=True)

    def fetched(folder: str, names: list[str]) -> list[str]:
        twins = {name: aside / Path(folder, name).relative_to(target) for name in names}
        return [
            name
            for name, twin in twins.items()
            if twin.exists() and not (twin.is_dir() and Path(folder, name).is_dir())
        ]

    shutil.copytree(
        target, aside, symlinks=True, ignore=fetched, copy_function=_link, dirs_exist_ok=True
    )


def _link(source: str, destination: str) -> None:
    """Make a hard link, or a copy on a file system without links: checkpoints are large."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)
