"""Finds the run that a user names: by its id, the start of its id, its folder, or `latest`."""

from __future__ import annotations

from pathlib import Path

from fedvsr.errors import UserError
from fedvsr.lookup import did_you_mean

LATEST = "latest"


class NoRunError(UserError):
    """No run has the name."""


def find_folder(name: str, results: Path) -> Path:
    """The folder of the run that `name` names.

    Args:
        name: the run's id, the start of its id if only one run has it, its folder, or `latest`: the
            run whose folder was made last.
        results: the folder in which runs are looked up.

    Raises:
        NoRunError: there is no such run.
        UserError: there are several.
    """
    for folder in (Path(name).expanduser(), results / name):
        if _is_run(folder):
            return folder
    folders = run_ids(results)
    if not folders:
        raise NoRunError(f"there is no run {name}: {results}/ holds none; `fedvsr run` makes one")
    if name == LATEST:
        return max(folders.values(), key=created)
    fitting = sorted(run_id for run_id in folders if run_id.startswith(name))
    if len(fitting) == 1:
        return folders[fitting[0]]
    if fitting:
        shown = ", ".join(fitting[:4]) + (", ..." if len(fitting) > 4 else "")
        raise UserError(f"{name} is the start of {len(fitting)} runs: {shown}; give more of it")
    raise NoRunError(
        f"there is no run {name} in {results}/{did_you_mean(name, folders)} (`fedvsr list` shows "
        "the existing ones)"
    )


def run_ids(results: Path) -> dict[str, Path]:
    """The folders of the runs in a folder of results, by id; trials of sweeps are not among them.

    A hidden folder holds a run that is on its way here and is left out.
    """
    children = results.iterdir() if results.is_dir() else ()
    return {path.name: path for path in children if path.name[0] != "." and _is_run(path)}


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.yaml", "runs.parquet"))


def created(folder: Path) -> tuple[int, str]:
    """When a run was made, for sorting: its configuration is written once, at its start."""
    config = folder / "config.yaml"
    return (config if config.exists() else folder / "runs.parquet").stat().st_mtime_ns, folder.name
