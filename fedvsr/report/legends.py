"""The title above a figure's panels, and the legend beside them."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill

from matplotlib.artist import Artist
from matplotlib.figure import Figure

# Characters in a line of the legend, unless a word is longer.
_WIDTH = 32
# Inches that a character of the legend is wide, a line is high, and two entries are apart.
_CHARACTER, _LINE, _GAP = 0.075, 0.155, 0.065
# Inches that a title of two lines takes.
_TITLE = 0.4
# Characters of a title in an inch, so that it fits surely.
_PER_INCH = 11


def add_legend(figure: Figure, handles: Mapping[str, Artist]) -> None:
    """Add a legend on the right. If it is long or wide, the figure grows.

    Args:
        figure: a figure with constrained layout, as wide as short labels need.
        handles: what each label explains.
    """
    labels = [fill(label, _WIDTH, break_long_words=False) for label in handles]
    longest = max((len(line) for label in labels for line in label.splitlines()), default=0)
    num_lines = sum(label.count("\n") + 1 for label in labels)
    width, height = figure.get_size_inches()
    # It is centred, and the title takes its own from above.
    needed = num_lines * _LINE + len(labels) * _GAP + 2 * _TITLE
    figure.set_size_inches(
        width + max(0, longest - _WIDTH) * _CHARACTER,
        max(height, needed),
    )
    figure.legend(handles.values(), labels, loc="outside right center", frameon=False, fontsize=9)


def add_title(figure: Figure, text: str) -> None:
    """Add a title, in as many lines as the figure's width asks for."""
    width = int(figure.get_size_inches()[0] * _PER_INCH)
    lines = [fill(line, width) for line in text.splitlines()]
    figure.suptitle("\n".join(lines), fontsize=11)
