"""Shows the progress of a sweep: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

_ROWS_SHOWN = 16
_ORDER = ("running", "interrupted", "failed", "finished", "stopped_early", "pending")
_SCORES = ("test set", "RGB PSNR", "over bicubic", "SSIM")
_FIXED = ("trial", "status", "round", "loss", *_SCORES, "seconds")


class SweepView:
    """Shows the rows of `trials.parquet` as they change.

    Args:
        console: where to show them.
        swept: the columns that hold the trials' swept values.
    """

    def __init__(self, console: Console, swept: Sequence[str]) -> None:
        self._console, self._swept = console, swept
        self._printed = dict[str, tuple[object, ...]]()
        self._live = Live(console=console, refresh_per_second=2) if console.is_terminal else None

    def __enter__(self) -> SweepView:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show all trials as they are now."""
        if self._live:
            by_status = sorted(rows, key=lambda row: (_ORDER.index(row["status"]), row["trial"]))
            table = trials_table(by_status[:_ROWS_SHOWN], self._swept)
            self._live.update(Group(Text(_summary(rows)), table))
            return
        for row in rows:
            state = row["status"], row.get("evaluated_round_idx")
            if state != self._printed.get(row["run_id"], ("pending", None)):
                self._printed[row["run_id"]] = state
                self._console.print(_line(row, self._swept), soft_wrap=True)


def trials_table(rows: Sequence[Mapping[str, Any]], swept: Sequence[str]) -> Table:
    """One line per trial."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trial", justify="right")
    for key in swept:
        table.add_column(key.rpartition(".")[2], justify="right")
    for name in _FIXED[1:]:
        table.add_column(name, justify="left" if name == "status" else "right", no_wrap=True)
    for row in rows:
        cells = _cells(row)
        values = [_value(row.get(key)) for key in swept]
        table.add_row(str(row["trial"]), *values, *(cells.get(name, "") for name in _FIXED[1:]))
    return table


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(row["status"] for row in rows)
    parts = [f"{counts[status]} {words(status)}" for status in _ORDER if counts[status]]
    return f"{len(rows)} trials: {', '.join(parts)}"


def _line(row: Mapping[str, Any], swept: Sequence[str]) -> str:
    values = " ".join(f"{key.rpartition('.')[2]}={_value(row.get(key))}" for key in swept)
    # The scores are those of the last evaluated round; training may be further.
    scored = row.get("evaluated_round_idx")
    cells = _cells(row if scored is None else {**row, "round_idx": scored})
    facts = "  ".join(f"{name} {cells[name]}" for name in _FIXED[2:] if name in cells)
    return f"trial {row['trial']}  {values}  {cells['status']}  {facts}"


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    cells = {"status": words(row["status"]), "round": f"{row['round_idx']}/{row['num_rounds']}"}
    if row.get("loss") is not None:
        cells["loss"] = f"{row['loss']:.4f}"
    if row.get("test_set") is not None:
        cells["test set"] = row["test_set"]
    if row.get("psnr_db") is not None:
        cells["RGB PSNR"] = f"{row['psnr_db']:.2f} dB"
    if row.get("ssim") is not None:
        cells["SSIM"] = f"{row['ssim']:.4f}"
    if row.get("psnr_db") is not None and row.get("bicubic_psnr_db") is not None:
        cells["over bicubic"] = f"{row['psnr_db'] - row['bicubic_psnr_db']:+.2f} dB"
    if row.get("rounds_s"):
        cells["seconds"] = f"{row['rounds_s']:.0f}"
    return cells


def words(status: str) -> str:
    """A status of `trials.parquet` as a person reads it."""
    return {"stopped_early": "stopped early", "interrupted": "stopped"}.get(status, status)


def _value(value: object) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)
