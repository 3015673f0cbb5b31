from __future__ import annotations

from typing import Literal

import pytest

from fedvsr.report.render import Markup, Table, plain, render

SPECIAL = "a_b 100% A&B #1 <i> $x$ {y} c\\d ~e^"
TABLE = Table(
    ("network", "method"),
    [("less", "REDS4", "PSNR"), ("less", "Vid4", "PSNR"), ("more", "Vid4", "PSNR")],
    [("VRT", "FedAvg"), ("VRT", "FedVSR"), ("RVRT", "FedVSR")],
    [["1", "2", "3"], ["4", "5", "6"], ["7", "8", "9"]],
)


def test_markdown_has_one_head_line() -> None:
    assert render(TABLE, "md").splitlines() == [
        "| network | method | less REDS4 PSNR | less Vid4 PSNR | more Vid4 PSNR |",
        "| --- | --- | --- | --- | --- |",
        "| VRT | FedAvg | 1 | 2 | 3 |",
        "| VRT | FedVSR | 4 | 5 | 6 |",
        "| RVRT | FedVSR | 7 | 8 | 9 |",
    ]


def test_latex_merges_equal_neighbours_within_their_outer_group() -> None:
    # Vid4 of less and Vid4 of more are neighbours, but not one group.
    assert render(TABLE, "tex").splitlines() == [
        "% needs the package booktabs",
        r"\begin{tabular}{llccc}",
        r"\toprule",
        r" &  & \multicolumn{2}{c}{less} & more \\",
        r"\cmidrule(lr){3-4} \cmidrule(lr){5-5}",
        r" &  & REDS4 & Vid4 & Vid4 \\",
        r"\cmidrule(lr){3-3} \cmidrule(lr){4-4} \cmidrule(lr){5-5}",
        r"network & method & PSNR & PSNR & PSNR \\",
        r"\midrule",
        r"VRT & FedAvg & 1 & 2 & 3 \\",
        r" & FedVSR & 4 & 5 & 6 \\",
        r"\addlinespace",
        r"RVRT & FedVSR & 7 & 8 & 9 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_html_merges_equal_neighbours_within_their_outer_group() -> None:
    assert render(TABLE, "html").splitlines() == [
        "<table>",
        "<thead>",
        '<tr><th>&nbsp;</th><th>&nbsp;</th><th colspan="2"><span>less</span></th>'
        "<th>more</th></tr>",
        "<tr><th>&nbsp;</th><th>&nbsp;</th><th>REDS4</th><th>Vid4</th><th>Vid4</th></tr>",
        "<tr><th>network</th><th>method</th><th>PSNR</th><th>PSNR</th><th>PSNR</th></tr>",
        "</thead>",
        "<tbody>",
        '<tr><th rowspan="2">VRT</th><th>FedAvg</th><td>1</td><td>2</td><td>3</td></tr>',
        "<tr><th>FedVSR</th><td>4</td><td>5</td><td>6</td></tr>",
        "<tr><th>RVRT</th><th>FedVSR</th><td>7</td><td>8</td><td>9</td></tr>",
        "</tbody>",
        "</table>",
    ]


def test_equal_labels_of_rows_stay_apart_in_a_plain_table() -> None:
    rows = [{"run": "one", "lost": "1 s"}, {"run": "one", "lost": "2 s"}]
    text = render(plain(rows, "html"), "html")
    assert text.count("<tr><th>one</th><td>") == 2


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        (
            "tex",
            r"a\_b 100\% A\&B \#1 \textless{}i\textgreater{} \$x\$ \{y\} c\textbackslash{}d "
            r"\textasciitilde{}e\textasciicircum{}",
        ),
        ("html", "a_b 100% A&amp;B #1 &lt;i&gt; $x$ {y} c\\d ~e^"),
    ],
)
def test_special_characters_are_escaped(markup: Literal["tex", "html"], expected: str) -> None:
    text = render(plain([{SPECIAL: SPECIAL, "cell": SPECIAL}], markup), markup)
    assert text.count(expected) == 3, "as heading, label and cell"
    assert SPECIAL not in text


def test_a_bar_does_not_end_a_cell_of_markdown() -> None:
    markup: Markup = "md"
    assert r"| a\|b |" in render(plain([{"run": "a|b", "x": "y"}], markup), markup)
