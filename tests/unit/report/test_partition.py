from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib.axes
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fedvsr.data.clips import Clip
from fedvsr.report.partition import draw_partition


def test_the_picture_shows_the_clips_of_each_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clips(*labels: str) -> list[Clip]:
        return [Clip(f"{i}", label, "", 4, 32, 32, 4) for i, label in enumerate(labels)]

    drawn = list[np.ndarray]()
    imshow = matplotlib.axes.Axes.imshow

    def record(self: matplotlib.axes.Axes, counts: np.ndarray, **settings: object) -> object:
        drawn.append(counts)
        return imshow(self, counts, **settings)

    monkeypatch.setattr(matplotlib.axes.Axes, "imshow", record)
    clients = [clips("dog", "cat", "dog"), clips("cat"), clips("emu", "emu")]
    path = draw_partition(clients, "three clients", tmp_path / "partition.png")
    # Labels in order: cat, dog, emu.
    np.testing.assert_array_equal(drawn[0], [[1, 1, 0], [2, 0, 0], [0, 0, 2]])
    picture = np.asarray(Image.open(path).convert("L"))
    assert picture.std() > 10


@pytest.mark.parametrize("num_clients", [4, 60])
def test_the_colour_bar_has_ticks_that_do_not_overlap(
    num_clients: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = list[Figure]()
    monkeypatch.setattr(
        "fedvsr.report.partition.save", lambda figure, path: figures.append(figure) or path
    )
    clips = [Clip(f"{i}", "v", "", 4, 32, 32, 4) for i in range(23)]
    draw_partition([clips[: i % 23 + 1] for i in range(num_clients)], "t", tmp_path / "p.png")
    (figure,) = figures
    figure.draw_without_rendering()
    bars = [axes for axes in figure.axes if axes.get_ylabel() == "Clips"][1:]
    assert len(bars) == (num_clients > 40), "numbers in the cells need no colour bar"
    for bar in bars:
        boxes = [label.get_window_extent() for label in bar.get_yticklabels()]
        shown = sorted(box.y0 for box in boxes if bar.bbox.y0 - 9 <= box.y0 <= bar.bbox.y1)
        height = boxes[0].height
        assert all(b - a >= height for a, b in pairwise(shown))
