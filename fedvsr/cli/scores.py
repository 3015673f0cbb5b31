"""Tables of scores, as `evaluate` and `show` print them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from fedvsr.inference.scores import ClipScore, Scores, by_degradation, by_test_set, mean_scores
from fedvsr.metrics import BICUBIC, METRICS


def scores_table(scores: Sequence[ClipScore], part: str) -> Table:
    """A row per clip, and the mean of each test set that has several clips.

    With several degradations, also the mean under each of them.

    Args:
        scores: at most one per clip and degradation.
        part: the part of each frame that is scored, in words; empty for the whole frame.
    """
    sets = by_test_set(scores)
    table = Table(box=None, pad_edge=False)
    what = [*(sets if len(sets) == 1 else ()), *([part] if part else ())]
    table.add_column(f"test clip ({', '.join(what)})" if what else "test clip")
    names = _shown(scores)
    heads = ["frames", "bicubic", "PSNR", "gain"] if "psnr_db" in names else ["frames"]
    for name in names:
        if name != "psnr_db":
            own = METRICS[name].label
            heads += [f"bicubic {own}", own] if _with_bicubic(name) else [own]
    for head in heads:
        table.add_column(head, justify="right")
    for test_set, own_scores in sets.items():
        kinds = by_degradation(own_scores)
        for kind, scores_of_kind in kinds.items():
            for score in scores_of_kind:
                clip_id = score.clip_id if len(sets) == 1 else f"{test_set}: {score.clip_id}"
                clip_id += f" ({kind or 'unknown'})" if len(kinds) > 1 else ""
                table.add_row(Text(clip_id), str(score.num_frames), *_cells(score, names))
            if len(kinds) > 1 and len(scores_of_kind) > 1:
                table.add_section()
                label = f"mean of {kind or 'unknown'}"
                label += "" if len(sets) == 1 else f" in {test_set}"
                table.add_row(Text(label), "", *_cells(mean_scores(scores_of_kind), names))
                table.add_section()
        if len(own_scores) > 1:
            table.add_section()
            label = "mean" if len(sets) == 1 else f"mean of {test_set}"
            cells = _cells(mean_scores(own_scores), names)
            table.add_row(Text(label), "", *cells, style="bold")
            table.add_section()
    return table


def gain_text(scores: Scores) -> str:
    """PSNR minus bicubic's, with a sign and its unit; empty without both."""
    return "" if scores.gain_db is None else f"{scores.gain_db:+.2f} dB"


def _with_bicubic(name: str) -> bool:
    """Whether bicubic's value has a column; luma's is about as far below as that of RGB."""
    return name not in ("psnr_y_db", "ssim_y")


def _shown(scores: Sequence[Scores]) -> list[str]:
    return [name for name in METRICS if any(name in score.values for score in scores)]


def _cells(scores: Scores, names: Sequence[str]) -> list[str]:
    cells = list[str]()
    for name in names:
        shown = [BICUBIC + name, name] if _with_bicubic(name) else [name]
        values = map(scores.values.get, shown)
        cells += ["" if value is None else METRICS[name].text(value) for value in values]
        if name == "psnr_db":
            cells.append(gain_text(scores))
    return cells
