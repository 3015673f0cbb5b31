"""Tables as Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import pandas as pd

from fedvsr.report.gather import DECIMALS, METRIC_NAMES, ordered

Markup = Literal["md", "tex", "html"]
# No run has this cell.
_MISSING = "–"  # noqa: RUF001 (a dash is meant)
_MINUS = "\N{MINUS SIGN}"

LEGEND = (
    "Mean and standard deviation over seeds; bold: the best federated method of those with a "
    "finished run; without a deviation it is one seed. In square brackets: the paper's value, and "
    "this one less it."
)


def grid(cells: pd.DataFrame, markup: Markup) -> pd.DataFrame:
    """Cells of `fedvsr.report.tables` as text: networks and methods down, the rest across."""
    rows = cells[["model", "method"]].drop_duplicates()
    columns = [
        (heterogeneity, testset, metric)
        for heterogeneity in ordered(cells["heterogeneity"], "heterogeneity")
        for testset in ordered(cells["testset"], "testset")
        for metric in cells["metric"].unique()
    ]
    texts = {
        (c["model"], c["method"], c["heterogeneity"], c["testset"], c["metric"]): _text(c, markup)
        for c in cells.to_dict("records")
    }
    pairs = list(rows.itertuples(index=False, name=None))
    return pd.DataFrame(
        [[texts[(*pair, *column)] for column in columns] for pair in pairs],
        index=pd.MultiIndex.from_tuples(
            [tuple(_escape(name, markup) for name in pair) for pair in pairs],
            names=["network", "method"],
        ),
        columns=pd.MultiIndex.from_tuples(
            [
                (_escape(f"heterogeneity: {h}", markup), _escape(t, markup), METRIC_NAMES[m])
                for h, t, m in columns
            ]
        ),
    )


def render(frame: pd.DataFrame, markup: Markup) -> str:
    """A frame of text in that markup, with its index as the first columns."""
    if markup == "md":
        heads = [*map(str, frame.index.names), *(_one_line(column) for column in frame.columns)]
        lines = [_row(heads), _row(["---"] * len(heads))]
        for index, values in zip(frame.index, frame.to_numpy(), strict=True):
            labels = index if isinstance(index, tuple) else (index,)
            lines.append(_row([*labels, *values]))
        return "\n".join(lines) + "\n"
    if markup == "tex":
        levels = frame.index.nlevels
        text = frame.style.to_latex(
            column_format="l" * levels + "c" * len(frame.columns),
            hrules=True,
            clines="skip-last;data" if levels > 1 else None,
            multicol_align="c",
            multirow_align="naive",
        )
        # Two rules one upon the other.
        text = re.sub(r"\\cline{\S+}\n\\bottomrule", r"\\bottomrule", text)
        # The index's names have a line of their own below the columns'.
        blanks, names = " & " * levels, " & ".join(map(str, frame.index.names))
        text = re.sub(
            rf"^{blanks}(.*\n){re.escape(names)} .*\n",
            lambda found: f"{names} & {found[1]}",
            text,
            flags=re.MULTILINE,
        )
        return f"% needs the package booktabs\n{text}"
    return _names_in_the_head(frame.style.to_html(exclude_styles=True), frame.index.nlevels)


def plain(rows: Iterable[Mapping[str, object]], markup: Markup, index: str) -> pd.DataFrame:
    """Rows of text as a frame for `render`, escaped, with `index` as the first column."""
    escaped = [{_escape(k, markup): _escape(str(v), markup) for k, v in r.items()} for r in rows]
    return pd.DataFrame(escaped).set_index(_escape(index, markup))


def number(value: float, decimals: int, signed: bool = False) -> str:
    """A number with a true minus sign."""
    return f"{value:{'+' if signed else ''}.{decimals}f}".replace("-", _MINUS)


def _names_in_the_head(table: str, levels: int) -> str:
    """Without the row of its own that the index's names have: they go into the blanks above it."""
    head, body = table.split("</thead>", 1)
    *above, names = re.findall(r"    <tr>.*?</tr>\n", head, re.DOTALL)
    for name in re.findall(r"<th >(.*?)</th>", names)[:levels]:
        above[-1] = above[-1].replace("&nbsp;", name, 1)
    before = head[: head.index("    <tr>")]
    return f"{before}{''.join(above)}  </thead>{body}"


def _text(cell: Mapping[Any, Any], markup: Markup) -> str:
    decimals = DECIMALS[cell["metric"]]
    state = _escape(cell["state"], markup)
    if pd.isna(cell["mean"]):
        text = state or _MISSING
    else:
        text = number(cell["mean"], decimals)
        if not pd.isna(cell["std"]):
            text += f" ± {cell['std']:.{decimals}f}"
        if cell["best"]:
            text = {
                "md": f"**{text}**",
                "tex": rf"\textbf{{{text}}}",
                "html": f"<strong>{text}</strong>",
            }[markup]
        if state:
            text += {
                "md": f" ({state})",
                "tex": rf" {{\scriptsize({state})}}",
                "html": f' <span class="state">{state}</span>',
            }[markup]
    if not pd.isna(cell["paper"]):
        beside = number(cell["paper"], decimals)
        if not pd.isna(cell["mean"]):
            beside += f", {number(cell['mean'] - cell['paper'], decimals, signed=True)}"
        text += {
            "md": f" [{beside}]",
            "tex": rf" {{\scriptsize[{beside}]}}",
            "html": f' <span class="paper">[{beside}]</span>',
        }[markup]
    return text.replace("±", r"$\pm$").replace(_MINUS, "$-$") if markup == "tex" else text


def _escape(text: str, markup: Markup) -> str:
    if markup == "html":
        return html.escape(text)
    if markup == "md":
        return text.replace("|", r"\|")
    for character in "\\&%$#_{}":
        replacement = r"\textbackslash " if character == "\\" else f"\\{character}"
        text = text.replace(character, replacement)
    return text


def _one_line(column: object) -> str:
    return " ".join(map(str, column)) if isinstance(column, tuple) else str(column)


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
