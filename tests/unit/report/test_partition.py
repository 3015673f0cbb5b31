from __future__ import annotations

from pathlib import Path

import matplotlib.axes
import numpy as np
import pytest
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
