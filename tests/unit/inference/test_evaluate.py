from __future__ import annotations

import numpy as np

from fedvsr import metrics, models
from fedvsr.config import ExperimentConfig
from fedvsr.inference.evaluate import Evaluator, bicubic
from fedvsr.params import flatten
from fedvsr.runs.launch import prepare_data


def test_crop_scores_only_the_middle(small: ExperimentConfig) -> None:
    (clip,) = prepare_data(small, lambda *_: None).test
    evaluation = small.evaluation.model_copy(update={"crop": 24, "max_frames": 2})
    # A fresh network of this kind is bicubic enlargement.
    params = flatten(models.build_fresh(small.model))
    (score,) = Evaluator(small.model, evaluation, [clip]).score(params)
    # Low-resolution frames of 12 x 16: rows 3 to 8, columns 5 to 10.
    lq, gt = clip.lq()[:2, 3:9, 5:11], clip.gt()[:2, 12:36, 20:44]
    wanted = metrics.psnr(bicubic(np.asarray(lq), 4), np.asarray(gt)).mean()
    assert score.num_frames == 2
    assert score.bicubic_psnr_db == wanted
    assert abs(score.psnr_db - wanted) < 0.05
    (whole,) = Evaluator(small.model, small.evaluation, [clip]).score(params)
    assert whole.bicubic_psnr_db != wanted
