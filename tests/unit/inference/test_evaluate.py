from __future__ import annotations

import numpy as np
import pytest

from fedvsr import models
from fedvsr.config import ExperimentConfig
from fedvsr.inference.evaluate import Evaluator, bicubic
from fedvsr.metrics.fidelity import psnr
from fedvsr.params import flatten
from fedvsr.runs.launch import prepare_data


def test_crop_scores_only_the_middle(small: ExperimentConfig) -> None:
    split = prepare_data(small, lambda *_: None)
    (clip,), sets = split.test, split.test_sets
    evaluation = small.evaluation.model_copy(update={"crop": 24, "max_frames": 2})
    # A fresh network of this kind is bicubic enlargement.
    params = flatten(models.build_fresh(small.model))
    (score,) = Evaluator(small.model, evaluation, [clip], sets).score(params).scores
    # Low-resolution frames of 12 x 16: rows 3 to 8, columns 5 to 10.
    lq, gt = clip.lq()[:2, 3:9, 5:11], clip.gt()[:2, 12:36, 20:44]
    wanted = psnr(bicubic(np.asarray(lq), 4), np.asarray(gt)).mean()
    assert score.num_frames == 2
    assert score.values["bicubic_psnr_db"] == pytest.approx(wanted, abs=1e-12)
    assert score.test_set == "held-out"
    assert abs(score.values["psnr_db"] - wanted) < 0.05
    (whole,) = Evaluator(small.model, small.evaluation, [clip], sets).score(params).scores
    assert whole.values["bicubic_psnr_db"] != pytest.approx(wanted)
