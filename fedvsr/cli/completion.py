"""What a shell completes after `fedvsr`: runs, sweeps, presets, networks and algorithms.

A shell calls this at each press of Tab: it lists folders, and reads no table and no configuration.
What holds a `/` is left to the shell, which completes paths better.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import typer

from fedvsr.lookup import names
from fedvsr.run_names import LATEST, created, run_ids

_PATHS = ("/", "~", ".")


def runs(context: typer.Context, incomplete: str) -> list[str]:
    """`latest`, and the ids of runs in the folder of results, the newest first."""
    if incomplete.startswith(_PATHS) or "/" in incomplete:
        return []
    try:
        folders = run_ids(_results(context))
        ordered = sorted(folders, key=lambda run_id: created(folders[run_id]), reverse=True)
    except OSError:
        # A folder that may not be read, or a run that is deleted meanwhile.
        return []
    return [LATEST, *ordered] if ordered else []


def sweeps(context: typer.Context, incomplete: str) -> list[str]:
    """The names of sweeps in the folder of results."""
    if "/" in incomplete:
        return []
    return sorted(path.parent.name for path in _results(context).glob("sweeps/*/sweep.yaml"))


def sources(incomplete: str) -> list[str]:
    """Presets, and the YAML files of this folder."""
    if incomplete.startswith(_PATHS) or "/" in incomplete:
        return []
    files = (Path(file.name) for file in resources.files("fedvsr.presets").iterdir())
    presets = sorted(file.stem for file in files if file.suffix == ".yaml")
    return [*presets, *sorted(path.name for path in Path().glob("*.y*ml"))]


def models() -> list[str]:
    """The networks."""
    return names("fedvsr.models")


def algorithms() -> list[str]:
    """The algorithms."""
    return names("fedvsr.algorithms")


def _results(context: typer.Context) -> Path:
    """The folder of results that the line so far names; `--out` is another thing for some."""
    given = context.params
    return Path(given.get("results") or given.get("out") or "results").expanduser()
