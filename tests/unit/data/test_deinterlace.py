from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedvsr.data.frames import Video, open_clip
from fedvsr.metrics.fidelity import psnr
from tests.conftest import moving_texture
from tests.unit.data.clips import write_clip

# Flags of an encoder: interlaced DCT and motion estimation.
_INTERLACED = 1 << 18 | 1 << 29


@pytest.mark.parametrize("bits", [8, 10])
def test_fields_are_separated(tmp_path: Path, bits: int) -> None:
    # It moves by four pixels between two moments.
    moments = (moving_texture(96, 48, 64)[::4] * 0.8 + 20).astype(np.uint8)
    woven = moments[::2].copy()
    # The lower field is the first, which is what PyAV tells x264.
    woven[:, ::2] = moments[1::2, ::2]
    path = write_clip(
        tmp_path / "v.mp4", woven, bits=bits, flags=_INTERLACED, encoder={"x264-params": "bff=1"}
    )
    clip = open_clip(path)
    assert isinstance(clip, Video)
    assert clip.interlaced
    as_it_is, separated = ([*clip.frames(deinterlace=choice)] for choice in (False, True))
    assert [time for _, time in separated] == [time for _, time in as_it_is]
    # Frames of the filter show the moment of the first field.
    scores = [
        psnr(np.stack([np.asarray(rgb, np.uint8) for rgb, _ in frames]), moments[::2]).mean()
        for frames in (as_it_is, separated)
    ]
    assert scores[1] > scores[0] + 2


def test_a_progressive_video(tmp_path: Path) -> None:
    clip = open_clip(write_clip(tmp_path / "v.mp4", moving_texture(3, 48, 64)))
    assert isinstance(clip, Video)
    assert not clip.interlaced
    assert len([*clip.frames(deinterlace=True)]) == 3
