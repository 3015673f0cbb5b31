"""Tables as Markdown, LaTeX and HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import pandas as pd

from fedvsr.metrics import METRICS
from fedvsr.report.gather import ordered

Markup = Literal["md", "tex", "html"]
# The cell of a method without a run.
MISSING = "–"  # noqa: RUF001 (a dash is meant)
_MINUS = "\N{MINUS SIGN}"
_TEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}"}
)

# The labels of a column or a row, from the outermost to the innermost.
_Labels = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table as text in one markup, ready for `render`."""

    names: Sequence[str]
    """Headings of the first columns, which hold the rows' labels."""
    columns: Sequence[_Labels]
    """Headings of each other column."""
    rows: Sequence[_Labels]
    """Labels of each row, one per name."""
    cells: Sequence[Sequence[str]]
    """The text of each row's other columns."""


def grid(cells: pd.DataFrame, markup: Markup) -> Table:
    """Cells of `fedvsr.report.tables`: networks and methods down, the rest across."""
    pairs = set(zip(cells["heterogeneity"], cells["testset"], strict=True))
    columns = [
        (heterogeneity, testset, metric)
        for heterogeneity in ordered(cells["heterogeneity"], "heterogeneity")
        for testset in ordered(cells["testset"], "testset")
        for metric in cells["metric"].unique()
        if (heterogeneity, testset) in pairs
    ]
    compared = bool(cells["paper"].notna().any())
    texts = {
        (c["model"], c["method"], c["heterogeneity"], c["testset"], c["metric"]): _text(
            c, markup, compared
        )
        for c in cells.to_dict("records")
    }
    rows = list(cells[["model", "method"]].drop_duplicates().itertuples(index=False, name=None))
    return Table(
        ("network", "method"),
        [
            (_escape(f"heterogeneity: {h}", markup), _escape(t, markup), METRICS[m].heading)
            for h, t, m in columns
        ],
        [tuple(_escape(name, markup) for name in row) for row in rows],
        [[texts[(*row, *column)] for column in columns] for row in rows],
    )


def plain(rows: Sequence[Mapping[str, str]], markup: Markup) -> Table:
    """Rows of text by column, escaped; the first column labels the rows."""
    first, *others = rows[0]
    return Table(
        [_escape(first, markup)],
        [(_escape(name, markup),) for name in others],
        [(_escape(row[first], markup),) for row in rows],
        [[_escape(row[name], markup) for name in others] for row in rows],
    )


def legend(cells: pd.DataFrame) -> str:
    """What the marks in a table's cells mean, as sentences."""
    if cells["std"].notna().any():
        parts = ["Mean ± standard deviation over seeds; no ± means one seed."]
    else:
        parts = ["Each number is of one seed."]
    if cells["best"].any():
        parts.append(
            "Bold: the best federated method, and those within its standard deviation; only where "
            "each has two finished seeds or more."
        )
    if cells["paper"].notna().any():
        parts.append(
            "In square brackets: the paper's value, and ours minus it; a dash if it has none."
        )
    return " ".join(parts)


def render(table: Table, markup: Markup) -> str:
    """A table, which must have been made for that markup, as its source text."""
    write = {"md": _markdown, "tex": _latex, "html": _html}[markup]
    return "\n".join(write(table)) + "\n"


def number(value: float, decimals: int, signed: bool = False) -> str:
    """A number with a true minus sign."""
    return f"{value:{'+' if signed else ''}.{decimals}f}".replace("-", _MINUS)


def _markdown(table: Table) -> Iterator[str]:
    yield _markdown_row([*table.names, *map(" ".join, table.columns)])
    yield _markdown_row(["---"] * (len(table.names) + len(table.columns)))
    for labels, texts in zip(table.rows, table.cells, strict=True):
        yield _markdown_row([*labels, *texts])


def _latex(table: Table) -> Iterator[str]:
    yield "% needs the package booktabs"
    yield rf"\begin{{tabular}}{{{'l' * len(table.names)}{'c' * len(table.columns)}}}"
    yield r"\toprule"
    depth = len(table.columns[0])
    for level, (names, groups) in enumerate(_head(table)):
        groups = list(groups)
        heads = (rf"\multicolumn{{{n}}}{{c}}{{{text}}}" if n > 1 else text for text, n in groups)
        yield " & ".join([*names, *heads]) + r" \\"
        if level < depth - 1:
            yield " ".join(_rules(len(table.names), [n for _, n in groups]))
    yield r"\midrule"
    levels = [_groups(table.rows, level) for level in range(len(table.names))]
    for i, texts in enumerate(table.cells):
        if i in levels[0] and i > 0 and len(levels) > 1:
            yield r"\addlinespace"
        labels = (level[i][0] if i in level else "" for level in levels)
        yield " & ".join([*labels, *texts]) + r" \\"
    yield r"\bottomrule"
    yield r"\end{tabular}"


def _rules(start: int, spans: Sequence[int]) -> Iterator[str]:
    """A rule below each group of columns, shortened at both ends to keep groups apart."""
    for span in spans:
        yield rf"\cmidrule(lr){{{start + 1}-{start + span}}}"
        start += span


def _html(table: Table) -> Iterator[str]:
    yield "<table>\n<thead>"
    for names, groups in _head(table):
        heads = [_th(name or "&nbsp;") for name in names]
        # The text of a wide heading moves along while its columns scroll past.
        heads += [_th(f"<span>{text}</span>" if n > 1 else text, colspan=n) for text, n in groups]
        yield f"<tr>{''.join(heads)}</tr>"
    yield "</thead>\n<tbody>"
    levels = [_groups(table.rows, level) for level in range(len(table.names))]
    for i, texts in enumerate(table.cells):
        labels = "".join(_th(level[i][0], rowspan=level[i][1]) for level in levels if i in level)
        yield f"<tr>{labels}{''.join(f'<td>{text}</td>' for text in texts)}</tr>"
    yield "</tbody>\n</table>"


def _head(table: Table) -> Iterator[tuple[Sequence[str], Iterable[tuple[str, int]]]]:
    """The lines of a table's head: `names`, in the last line only, and groups of columns."""
    depth = len(table.columns[0])
    for level in range(depth):
        names = table.names if level == depth - 1 else [""] * len(table.names)
        yield names, _groups(table.columns, level).values()


def _groups(labels: Sequence[_Labels], level: int) -> dict[int, tuple[str, int]]:
    """Neighbours with one label at a level and those outside it, to be drawn as one cell.

    The innermost level is not grouped.

    Returns:
        The label and the number of neighbours by the position of the first.
    """
    if level == len(labels[0]) - 1:
        return {i: (label[level], 1) for i, label in enumerate(labels)}
    groups = dict[int, tuple[str, int]]()
    for _, group in groupby(range(len(labels)), key=lambda i: labels[i][: level + 1]):
        positions = list(group)
        groups[positions[0]] = labels[positions[0]][level], len(positions)
    return groups


def _th(text: str, **spans: int) -> str:
    attributes = "".join(f' {name}="{count}"' for name, count in spans.items() if count > 1)
    return f"<th{attributes}>{text}</th>"


def _text(cell: Mapping[Any, Any], markup: Markup, compared: bool) -> str:
    decimals = METRICS[cell["metric"]].decimals
    state = _escape(cell["state"], markup)
    if pd.isna(cell["mean"]):
        text = state or MISSING
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
    if compared and not (pd.isna(cell["paper"]) and pd.isna(cell["mean"])):
        paper = MISSING if pd.isna(cell["paper"]) else number(cell["paper"], decimals)
        if not (pd.isna(cell["paper"]) or pd.isna(cell["mean"])):
            paper += f", {number(cell['mean'] - cell['paper'], decimals, signed=True)}"
        text += {
            "md": f" [{paper}]",
            "tex": rf" {{\scriptsize[{paper}]}}",
            "html": f' <span class="paper">[{paper}]</span>',
        }[markup]
    if markup == "tex":
        text = text.replace("±", r"$\pm$").replace(_MINUS, "$-$").replace(MISSING, "--")
    return text


def _escape(text: str, markup: Markup) -> str:
    if markup == "html":
        return html.escape(text)
    return text.replace("|", r"\|") if markup == "md" else text.translate(_TEX)


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
