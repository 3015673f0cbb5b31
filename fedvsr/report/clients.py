"""A figure of a run's clients: losses, weights, participation, times, slots, faults and bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fedvsr.records import Results
from fedvsr.report.gather import setting_name

_MARKS = {"died": "x", "node_lost": "D", "out_of_memory": "s", "timeout": "o", "raised": "^"}
_FAULT, _OURS, _OTHER = "#D55E00", "#0072B2", "#E69F00"
_MIB = 2**20
# With more bars a Gantt chart is unreadable.
_MOST_BARS = 4000


def title_of(run: Mapping[Any, Any]) -> str:
    """The title of a run's client view; `run` is a row of `Gathered.runs`."""
    where = f"{run['model']}, {run['method']}, {setting_name(run['heterogeneity'])}"
    return f"{where}, seed {run['seed']}"


def draw_clients(results: Results, run_id: str, title: str) -> Figure:
    """Draw the client view of a run, without the panels for which nothing was recorded."""
    clients, rounds, faults = (
        table[table["run_id"] == run_id].sort_values("round_idx")
        for table in (results.clients, results.rounds, results.faults)
    )
    rounds = rounds[rounds["round_idx"] > 0]
    count = int(results.runs[results.runs["run_id"] == run_id]["num_clients"].iloc[0])
    moved = rounds[["download_bytes", "upload_bytes"]].to_numpy().sum() > 0
    panels: list[tuple[Callable[[Axes], None], bool]] = [
        (
            lambda axes: _heat(axes, clients, "loss", "Local loss", count, faults),
            bool(clients["loss"].notna().any()),
        ),
        (
            lambda axes: _heat(axes, clients, "weight", "Aggregation weight", count, None),
            bool(clients["weight"].notna().any()),
        ),
        (lambda axes: _participation(axes, clients, count), not clients.empty),
        (lambda axes: _seconds(axes, clients), bool(clients["train_s"].notna().any())),
        (lambda axes: _bytes(axes, rounds), moved),
    ]
    halves = [draw for draw, is_recorded in panels if is_recorded]
    bars = gantt(clients, rounds)
    has_bars = not bars.empty and len(bars) <= _MOST_BARS
    wholes: list[Callable[[Axes], None]] = [lambda axes: _gantt(axes, bars, faults)]
    wholes = wholes if has_bars else []
    rows = -(-len(halves) // 2)
    figure = Figure(figsize=(11, 2.9 * (rows + len(wholes)) + 0.4), layout="constrained")
    layout = [[f"h{2 * i}", f"h{2 * i + 1}"] for i in range(rows)]
    if len(halves) % 2:
        layout[-1][1] = layout[-1][0]
    layout += [[f"w{i}", f"w{i}"] for i in range(len(wholes))]
    axes_of: dict[str, Axes] = figure.subplot_mosaic(layout)  # type: ignore[arg-type]
    for i, draw in enumerate(halves):
        draw(axes_of[f"h{i}"])
    for i, draw in enumerate(wholes):
        draw(axes_of[f"w{i}"])
    figure.suptitle(title, fontsize=11)
    return figure


def gantt(clients: pd.DataFrame, rounds: pd.DataFrame) -> pd.DataFrame:
    """When each client trained, if slots were recorded.

    Returns:
        A row per client and round: `slot`, `round_idx`, `client_id`, `start_s` from the first
        round's first step, and `train_s`. A round starts when the previous round's `train_s` and
        its own `gap_s` have passed; without a recorded gap, the previous round's aggregation and
        scoring time.
    """
    recorded = clients.dropna(subset=["slot", "started_s"])
    if recorded.empty:
        return pd.DataFrame(columns=["slot", "round_idx", "client_id", "start_s", "train_s"])
    ends = (recorded["started_s"] + recorded["train_s"]).groupby(recorded["round_idx"]).max()
    origin, begins = 0.0, dict[int, float]()
    before = 0.0
    for i, row in enumerate(rounds.to_dict("records")):
        gap_s = row["gap_s"]
        origin += 0.0 if i == 0 else before if pd.isna(gap_s) else gap_s
        begins[row["round_idx"]] = origin
        origin += max(row["train_s"], ends.get(row["round_idx"], 0.0))
        before = row["aggregate_s"] + row["evaluate_s"]
    start_s = recorded["round_idx"].map(begins) + recorded["started_s"]
    return recorded.assign(start_s=start_s)[
        ["slot", "round_idx", "client_id", "start_s", "train_s"]
    ]


def busy(bars: pd.DataFrame) -> float:
    """The share of time in which the slots trained, from the first start to the last end."""
    span = (bars["start_s"] + bars["train_s"]).max() - bars["start_s"].min()
    return float(bars["train_s"].sum() / (span * bars["slot"].nunique()))


def participation(clients: pd.DataFrame, count: int) -> pd.Series[int]:
    """The number of rounds in which each of `count` clients trained, by client."""
    return clients["client_id"].value_counts().reindex(range(count), fill_value=0)


def fault_rows(results: Results) -> pd.DataFrame:
    """Failures by run, kind and whether the work was given up, with their number and lost time."""
    faults = results.faults
    counted = faults.groupby(["run_id", "kind", "final"], as_index=False).agg(
        count=("kind", "size"), lost_s=("lost_s", "sum"), message=("message", "last")
    )
    return counted.sort_values(["run_id", "count"], ascending=[True, False])


def _heat(
    axes: Axes, clients: pd.DataFrame, column: str, label: str, count: int, faults: object
) -> None:
    last = max(int(clients["round_idx"].max()), 1) if len(clients) else 1
    values = np.full((count, last), np.nan)
    # Centralized training has one client with all clips.
    trained = clients[clients["client_id"] < count]
    values[trained["client_id"], trained["round_idx"] - 1] = trained[column]
    image = axes.imshow(
        values,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        cmap="viridis",
        extent=(0.5, last + 0.5, -0.5, count - 0.5),
    )
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes, pad=0.01)
    axes.set(title=label, xlabel="Round", ylabel="Client")
    axes.set_facecolor("0.93")
    _whole_numbers(axes)
    if not isinstance(faults, pd.DataFrame):
        return
    handles = []
    for kind, rows in faults.dropna(subset=["client_id"]).groupby("kind"):
        mark = _MARKS.get(str(kind), "P")
        edge = None if mark == "x" else "white"
        axes.scatter(
            rows["round_idx"], rows["client_id"], marker=mark, c=_FAULT, s=34, edgecolors=edge
        )
        line = Line2D([], [], marker=mark, color=_FAULT, ls="", label=f"{kind} ({len(rows)})")
        handles.append(line)
    if handles:
        # The legend is beside the title because the map fills the axes.
        axes.set_title(label, loc="left")
        axes.set_title("")
        axes.legend(
            handles=handles,
            fontsize=8,
            frameon=False,
            ncols=len(handles),
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            borderaxespad=0.1,
        )


def _participation(axes: Axes, clients: pd.DataFrame, count: int) -> None:
    rounds = participation(clients, count)
    axes.bar(rounds.index, rounds, color="0.55", width=0.9)
    axes.axhline(rounds.mean(), color=_OURS, lw=1, ls="--", label=f"mean {rounds.mean():.1f}")
    axes.set(title="Participation", xlabel="Client", ylabel="Rounds trained in")
    axes.set_ylim(top=1.2 * float(rounds.max()))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, frameon=False, loc="upper right")
    _tidy(axes)


def _seconds(axes: Axes, clients: pd.DataFrame) -> None:
    _points(axes, clients, "train_s", _OURS)
    waits = clients["input_wait_s"]
    if (waits > 0.05 * clients["train_s"]).any():
        _points(axes, clients, "input_wait_s", _OTHER)
        handles = [
            Line2D([], [], marker="o", ls="", color=colour, label=label)
            for colour, label in ((_OURS, "training"), (_OTHER, "waiting for samples (part of it)"))
        ]
        axes.legend(handles=handles, fontsize=8, frameon=False)
    axes.set(title="Time per client and round", xlabel="Client", ylabel="Seconds")
    axes.set_ylim(0, 1.25 * float(clients["train_s"].max()) or 1.0)
    axes.margins(x=0.03)
    _tidy(axes)


def _points(axes: Axes, clients: pd.DataFrame, column: str, colour: str) -> None:
    # Points at the edge are shown whole, above the axis.
    axes.scatter(
        clients["client_id"],
        clients[column],
        s=14,
        color=colour,
        alpha=0.5,
        lw=0,
        clip_on=False,
        zorder=3,
    )


def _bytes(axes: Axes, rounds: pd.DataFrame) -> None:
    down, up = (rounds[name] / _MIB for name in ("download_bytes", "upload_bytes"))
    axes.bar(rounds["round_idx"], down, color=_OURS, width=0.8, label=f"down, {_size(down)}")
    axes.bar(
        rounds["round_idx"], up, bottom=down, color=_OTHER, width=0.8, label=f"up, {_size(up)}"
    )
    axes.set(title="Bytes between server and clients", xlabel="Round", ylabel="MiB")
    axes.set_ylim(top=max(1e-9, 1.3 * float((down + up).max() if len(rounds) else 0)))
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper left")
    _tidy(axes)


def _size(mib: pd.Series[float]) -> str:
    total = float(mib.sum())
    return f"{total / 1024:.1f} GiB in all" if total >= 1024 else f"{total:.1f} MiB in all"


def _gantt(axes: Axes, bars: pd.DataFrame, faults: pd.DataFrame) -> None:
    slots = sorted(bars["slot"].unique())
    for place, slot in enumerate(slots):
        rows = bars[bars["slot"] == slot]
        spans = list(zip(rows["start_s"], rows["train_s"], strict=True))
        colours = [_OURS if odd else "#56B4E9" for odd in rows["round_idx"] % 2 == 1]
        axes.broken_barh(spans, (place - 0.4, 0.8), facecolors=colours, edgecolor="white", lw=0.4)
        if len(bars) <= 60:
            for row in rows.to_dict("records"):
                middle = row["start_s"] + row["train_s"] / 2
                name = str(int(row["client_id"]))
                axes.text(middle, place, name, ha="center", va="center", fontsize=7, color="white")
    lost = "" if faults.empty else f"; {len(faults)} faults"
    axes.set(
        title=f"Slots: busy {busy(bars):.0%} of the time{lost} (colours alternate by round)",
        xlabel="Seconds from the first step",
        ylabel="Slot",
        yticks=range(len(slots)),
        yticklabels=[str(int(slot)) for slot in slots],
    )
    axes.spines[["top", "right"]].set_visible(False)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _whole_numbers(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
