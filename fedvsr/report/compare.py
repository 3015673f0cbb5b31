"""Runs beside each other: the settings that differ, and their scores clip by clip."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedvsr.errors import UserError
from fedvsr.metrics import METRICS
from fedvsr.records import checked_table, read_runs
from fedvsr.report.figures import NotebookFigure
from fedvsr.report.gather import flat_settings, mean_scores
from fedvsr.report.paired import interval

# Okabe and Ito's colours without yellow, which is too light for lines.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#4D4D4D")


@dataclass(frozen=True)
class Comparison:
    """What sets runs apart. The first run is the reference."""

    settings: pd.DataFrame
    """A row per setting that differs, by its dotted key, and a column per run."""
    scores: pd.DataFrame
    """A row per test set, metric and clip that all runs scored, and a column per run: the run's
    score in its last evaluated round."""
    curves: pd.DataFrame
    """PSNR (dB) of the first test set, the mean over these clips: a row per round, and a column per
    run."""

    @property
    def run_ids(self) -> list[str]:
        """The runs in the order in which they were named."""
        return list(self.scores.columns)

    @property
    def clip_ids(self) -> list[str]:
        """The test clips that all runs scored."""
        return [str(clip) for clip in self.scores.index.unique(level="clip_id")]

    @property
    def means(self) -> pd.DataFrame:
        """Means over the clips, by test set, metric and run.

        Columns: `mean`, its `difference` to the reference, and `low` and `high`, the 95 % interval
        of that difference over the clips (Student's t of paired differences). The interval is null
        for one clip, for the reference, and without scipy.
        """
        rows = list[dict[str, object]]()
        for labels, scores in self.scores.groupby(level=["test_set", "metric"], sort=False):
            for run_id in self.run_ids:
                differences = scores[run_id] - scores[self.run_ids[0]]
                row = {
                    "test_set": labels[0],
                    "metric": labels[1],
                    "run_id": run_id,
                    "mean": scores[run_id].mean(),
                }
                if run_id != self.run_ids[0]:
                    row["difference"] = differences.mean()
                    with suppress(UserError):
                        row["low"], row["high"] = interval(differences)
                rows.append(row)
        keys = ["test_set", "metric", "run_id"]
        columns = [*keys, "mean", "difference", "low", "high"]
        return pd.DataFrame(rows, columns=columns).set_index(keys)

    def plot(self) -> Figure:
        """PSNR by round, a line per run."""
        figure = NotebookFigure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for i, run_id in enumerate(self.run_ids):
            line = self.curves[run_id].dropna()
            colour = _COLOURS[i % len(_COLOURS)]
            axes.plot(line.index, line, marker="o", ms=3, lw=2, color=colour, label=run_id)
        axes.set(xlabel="Round", ylabel=METRICS["psnr_db"].heading)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize="small")
        return figure

    def _repr_html_(self) -> str:
        """For notebooks."""
        settings = self.settings.to_html() if len(self.settings) else "<p>No setting differs.</p>"
        return settings + self.means.to_html(na_rep="", float_format="{:.4g}".format)


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare runs by their folders, the reference first.

    Raises:
        UserError: a folder holds no run, or none with scores; a run is named twice; or no test clip
            is common to all.
    """
    settings, scores, curves = dict[str, dict[str, object]](), {}, {}
    for folder in folders:
        runs = read_runs(folder)
        if len(runs) != 1:
            raise UserError(f"there is no run at {folder}; `fedvsr list` shows the existing ones")
        run_id = str(runs[0]["run_id"])
        if run_id in settings:
            raise UserError(f"{run_id} is named twice; name different runs")
        settings[run_id] = {"seed": runs[0]["seed"], **flat_settings(runs[0]["config"])}
        settings[run_id].pop("on_finish", None)
        evaluations = checked_table(folder, "evaluations").to_pandas()
        if evaluations.empty:
            raise UserError(f"{run_id} has no score yet; the first follows the start of a run")
        # If each client has a network, a clip's score is the mean of theirs.
        keys = ["round_idx", "test_set", "clip_id"]
        scores[run_id] = mean_scores(evaluations, keys, [*METRICS]).set_index(keys[1:])
    shared = set.intersection(*(set(rows.index) for rows in scores.values()))
    if not shared:
        raise UserError(f"{', '.join(settings)} have no test clip in common")
    last = {}
    for run_id, rows in scores.items():
        own = rows[rows.index.isin(shared)]
        first = own[own.index.get_level_values("test_set") == own.index[0][0]]
        curves[run_id] = first.groupby("round_idx")["psnr_db"].mean()
        newest = own[own["round_idx"] == own["round_idx"].max()]
        by_metric = pd.concat({name: newest[name] for name in METRICS}, names=["metric"])
        last[run_id] = by_metric.reorder_levels(["test_set", "metric", "clip_id"])
    return Comparison(
        _differing(settings),
        pd.DataFrame(last).dropna(),
        pd.DataFrame(curves).rename_axis("round_idx"),
    )


def _differing(settings: dict[str, dict[str, object]]) -> pd.DataFrame:
    keys = list(dict.fromkeys(key for own in settings.values() for key in own))
    rows = {
        key: {run_id: own.get(key) for run_id, own in settings.items()}
        for key in keys
        if len({json.dumps(own.get(key)) for own in settings.values()}) > 1
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(settings), dtype=object)
