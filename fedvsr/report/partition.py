"""The picture of a partition: how many clips of each label each client holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedvsr.data.client_clips import ClientClips, label_counts
from fedvsr.data.clips import Clip
from fedvsr.report.figures import save

# With more clients than this, numbers do not fit into the cells.
_MOST_LABELLED = 40


def draw_partition(clients: Sequence[Sequence[Clip]], title: str, path: Path) -> Path:
    """Draw the number of clips by client (across) and label (down), and the totals above.

    Args:
        clients: each client's clips.
        title: the title of the picture.
        path: the PNG to write.
    """
    labels, counts = label_counts(ClientClips.of(clients))
    width = min(24, 3.5 + 0.28 * len(clients))
    figure = Figure(figsize=(width, min(24, 2.4 + 0.25 * len(labels))), layout="constrained")
    above, axes = figure.subplots(2, 1, sharex=True, height_ratios=[1.2, 0.25 * len(labels) + 0.3])
    above.bar(range(len(clients)), counts.sum(axis=0), color="0.55")
    above.set(ylabel="Clips", title=title)
    above.spines[["top", "right"]].set_visible(False)
    image = axes.imshow(counts, cmap="Blues", aspect="auto", vmin=0)
    axes.set(xlabel="Client", yticks=range(len(labels)), yticklabels=labels)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(clients) <= _MOST_LABELLED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if count > 0.6 * counts.max() else "black"
                axes.text(
                    column, row, str(count), ha="center", va="center", color=colour, fontsize=7
                )
    else:
        few = MaxNLocator(nbins=min(5, max(1, len(labels) // 2)), integer=True)
        figure.colorbar(image, ax=axes, label="Clips", fraction=0.03, pad=0.01, ticks=few)
    return save(figure, path)
