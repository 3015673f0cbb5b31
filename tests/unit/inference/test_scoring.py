"""Test clips of files: what low-resolution frames are made of ground truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvsr.data.degrade_config import pipelines
from fedvsr.data.degraded import degraded
from fedvsr.errors import UserError
from fedvsr.inference.scoring import Degrading, find_clips
from tests.conftest import moving_texture
from tests.unit.data.clips import write_store

NAMED = {
    "clean": "bi",
    # A codec gives frames later than it takes them.
    "harsh": [
        {"step": "gaussian_noise", "sigma": [2, 20]},
        {"step": "h264", "qp": [20, 35]},
        {"step": "downscale"},
    ],
}


def test_frames_are_degraded_as_those_of_a_run(tmp_path: Path) -> None:
    frames = moving_texture(6, 64, 96).astype(np.uint8)
    folder = tmp_path / "gt" / "street"
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{i:03d}.png")
    (clip,) = write_store(tmp_path / "store", {"street": frames})
    made = degraded([(clip, name) for name in NAMED], pipelines(NAMED), 7, tmp_path / "cache")
    found = find_clips([str(folder.parent)], (), 4, degrading=Degrading(NAMED, 7))
    assert [(f.clip_id, f.test_set, f.degradation) for f in found] == [
        ("street", "gt", "clean"),
        ("street", "gt", "harsh"),
    ]
    for expected, test_clip in zip(made, found, strict=True):
        truths, lows = (np.stack(column) for column in zip(*test_clip.pairs(), strict=True))
        np.testing.assert_array_equal(truths, frames)
        np.testing.assert_array_equal(lows, expected.lq())
    # Fewer frames are the first of the same; another seed gives others.
    (_, short) = find_clips([str(folder.parent)], (), 4, 2, Degrading(NAMED, 7))
    assert short.num_frames == 2
    np.testing.assert_array_equal([low for _, low in short.pairs()], made[1].lq()[:2])
    (_, other) = find_clips([str(folder.parent)], (), 4, 2, Degrading(NAMED, 8))
    assert (np.stack([low for _, low in other.pairs()]) != made[1].lq()[:2]).any()


@pytest.mark.parametrize(
    ("degradation", "message"),
    [
        ("compresed", r"--degrade: compresed is no ready-made pipeline; did you mean 'compressed'"),
        (
            [{"step": "jpeg", "quality": 50}],
            "--degrade: steps does not end with the low-resolution",
        ),
    ],
)
def test_what_is_no_pipeline_is_refused(degradation: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Degrading(degradation).pipelines(4)  # type: ignore[arg-type]
