"""The numbers of a report, computed once for all formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from fedvsr.errors import UserError
from fedvsr.records import Results, read_results, run_folders
from fedvsr.report import crops, curves, degradations, effects, paired, tables, weights
from fedvsr.report.clients import fault_rows
from fedvsr.report.gather import Gathered, gather
from fedvsr.report.overhead import overhead
from fedvsr.report.papers import DEFAULT, Paper

# A folder with this file is a sweep's: `fedvsr.tuning.table`, which may not be imported here.
SWEEP_FILE = "sweep.yaml"


@dataclass(frozen=True)
class Report:
    """The numbers of a report, which each format writes."""

    results: Results
    gathered: Gathered
    paper: Paper
    """The form of the paper whose values stand beside the runs'."""
    main: pd.DataFrame
    ablation: pd.DataFrame
    degradations: pd.DataFrame
    """Scores under each degradation; empty without several."""
    own: pd.DataFrame
    """Scores of clients under their own degradation; empty without several."""
    margins: pd.DataFrame
    differences: pd.DataFrame
    """Empty without scipy."""
    effects: pd.DataFrame
    """Tested differences; empty without scipy or a second seed."""
    overhead: pd.DataFrame
    faults: pd.DataFrame
    points: pd.DataFrame
    """Points of the curves."""
    weights: pd.DataFrame
    """Points of the curves of weights."""
    frames: tuple[crops.Frame, ...]
    notes: tuple[str, ...]


def read(folder: Path, paper: Paper = DEFAULT, metrics: Sequence[str] | None = None) -> Report:
    """Compute the report of the runs at or below a folder.

    The trials of sweeps below the folder are left out, because each would be a method; they are
    reported if `folder` is a sweep's own.

    Args:
        folder: the folder of the results.
        paper: the form of the paper whose values to show.
        metrics: the metrics to show; see `gather`.

    Raises:
        UserError: the folder is missing, or holds no run that has been scored, or no score of a
            metric that is asked for.
    """
    own, sweeps = _without_sweeps(folder)
    results, folder_of = read_results(own, folder)
    if results.runs.empty and sweeps:
        raise UserError(
            f"{folder} holds only trials of sweeps; `fedvsr tune-report {sweeps[0]}` shows the best"
            f", and `fedvsr report {sweeps[0]}` compares all"
        )
    gathered = gather(results, metrics)
    main = tables.main_table(gathered, paper)
    notes = gathered.notes
    notes += tuple(
        f"the trials of the sweep {sweep} are left out; `fedvsr tune-report {sweep}` shows them"
        for sweep in sweeps
    )
    if find_spec("scipy") is None:
        differences = pd.DataFrame(columns=paired.COLUMNS)
        tested = pd.DataFrame(columns=effects.COLUMNS)
        notes += ("paired differences are left out because scipy is missing (extra `report`)",)
    else:
        differences = paired.paired_differences(gathered)
        tested = effects.effects(gathered)
    return Report(
        results,
        gathered,
        paper,
        main,
        tables.ablation_table(gathered, paper),
        tables.degradation_table(gathered, degradations.by_degradation(results, gathered), paper),
        degradations.own_scores(results, gathered),
        tables.margins(main),
        differences,
        tested,
        overhead(results, gathered, paper),
        fault_rows(results),
        curves.curve_points(gathered),
        weights.weight_points(results, gathered),
        tuple(crops.frames(gathered, folder_of)),
        notes,
    )


def _without_sweeps(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders of runs that are no trials of a sweep below `folder`, and these sweeps' own."""
    own, sweeps = list[Path](), dict[Path, None]()
    for run in run_folders(folder):
        above = [parent for parent in run.parents if parent.is_relative_to(folder)]
        sweep = next((p for p in above if p != folder and (p / SWEEP_FILE).is_file()), None)
        if sweep is None:
            own.append(run)
        else:
            sweeps[sweep] = None
    return own, list(sweeps)
