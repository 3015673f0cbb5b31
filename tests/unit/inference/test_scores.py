"""Means of clips' scores."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from fedvsr.inference.scores import ClipScore, Scores, headline, mean_scores

FIRST = ClipScore(
    clip_id="a",
    test_set="Vid4",
    num_frames=100,
    values={"psnr_db": 30.0, "lpips": 0.25, "bicubic_psnr_db": 28.0},
)
SECOND = replace(
    FIRST, clip_id="b", num_frames=1, values={**FIRST.values, "psnr_db": 33.0, "lpips": 0.75}
)


def test_clips_count_alike_whatever_their_length() -> None:
    mean = mean_scores([FIRST, SECOND])
    assert mean == Scores(values={"psnr_db": 31.5, "lpips": 0.5, "bicubic_psnr_db": 28.0})
    assert mean.gain_db == 3.5


def test_a_measure_that_is_not_scored_has_no_mean() -> None:
    mean = mean_scores([replace(FIRST, values={"psnr_db": 30.0}), SECOND])
    assert mean.values == {"psnr_db": 31.5}
    assert mean.gain_db is None


def test_the_headline_is_of_the_first_test_set() -> None:
    other = replace(SECOND, test_set="REDS4", values={"psnr_db": 99.0})
    assert headline([FIRST, other, SECOND]) == ("Vid4", mean_scores([FIRST, SECOND]))


def test_no_scores_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no scores"):
        mean_scores([])
    with pytest.raises(ValueError, match="no scores"):
        headline([])


def test_scores_need_no_torch() -> None:
    program = "import sys, fedvsr.inference.scores; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
