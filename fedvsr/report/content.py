"""The numbers of a report, computed once for all formats."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from fedvsr.records import Results, load_results
from fedvsr.report import crops, curves, paired, tables
from fedvsr.report.clients import fault_rows
from fedvsr.report.gather import Gathered, gather
from fedvsr.report.overhead import overhead


@dataclass(frozen=True)
class Report:
    """The numbers of a report, which each format writes."""

    results: Results
    gathered: Gathered
    main: pd.DataFrame
    ablation: pd.DataFrame
    margins: pd.DataFrame
    differences: pd.DataFrame
    """Empty without scipy."""
    overhead: pd.DataFrame
    faults: pd.DataFrame
    points: pd.DataFrame
    """Points of the curves."""
    frames: tuple[crops.Frame, ...]
    notes: tuple[str, ...]


def read(folder: Path) -> Report:
    """Compute the report of the runs at or below a folder.

    Raises:
        UserError: the folder is missing or holds no run.
    """
    results = load_results(folder)
    gathered = gather(results)
    main = tables.main_table(gathered)
    notes = gathered.notes
    if find_spec("scipy") is None:
        differences = pd.DataFrame(columns=paired.COLUMNS)
        notes += ("paired differences are left out because scipy is missing (extra `report`)",)
    else:
        differences = paired.paired_differences(gathered)
    return Report(
        results,
        gathered,
        main,
        tables.ablation_table(gathered),
        tables.margins(main),
        differences,
        overhead(results, gathered),
        fault_rows(results),
        curves.curve_points(gathered),
        tuple(crops.frames(gathered, crops.run_folders(folder))),
        notes,
    )
