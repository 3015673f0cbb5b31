import re
from typing import Any

import pytest
from pydantic import ValidationError

from fedvsr.config import load_config
from fedvsr.data.config import DataConfig
from fedvsr.data.degrade_config import READY, pipelines
from fedvsr.errors import UserError
from fedvsr.refusals import explain

DOWN = {"step": "downscale"}


def data(degradation: Any, **settings: Any) -> DataConfig:
    return DataConfig(**{"videos": ["a.mp4"], "degradation": degradation, **settings})


def refusal(degradation: Any, **settings: Any) -> str:
    """The line that a user reads."""
    with pytest.raises(ValidationError) as raised:
        data(degradation, **settings)
    return explain(raised.value)


@pytest.mark.parametrize(
    ("degradation", "message"),
    [
        ("blur_nose", "blur_nose is no ready-made pipeline; did you mean 'blur_noise'"),
        ([], r"\[\] is no pipeline: give a name \(bi, bd, "),
        ({}, r"{} holds no pipeline"),
        ({"a/b": "bi"}, "'a/b' is no name of a pipeline"),
        ({"noisy": 3}, "noisy: 3 is no pipeline"),
        (["bi"], "step 1 = 'bi': give settings in it"),
        ([{"step": "blurr"}], "step 1: blurr is no step; did you mean 'blur'"),
        ([DOWN, {"step": "jpeg"}], r"step 2 \(jpeg\): quality: field required"),
        ([{"step": "jpeg", "quality": 96}], r"quality = 96: .* less than or equal to 95"),
        ([{"step": "jpeg", "quality": [90, 40]}], r"quality = \[90, 40\]: give the smaller number"),
        ([{"step": "jpeg", "quality": [40, 50, 60]}], r"quality = \[40, 50, 60\]: "),
        ([{"step": "h264", "qp": 52}], "qp = 52"),
        ([{"step": "h264", "qp": 20.5}], "qp = 20.5"),
        ([{"step": "gaussian_noise", "sigma": True}], "true and false are not numbers"),
        ([{"step": "blur", "sigma": 0.01}], "sigma = 0.01"),
        ([{"step": "blur", "angle": 30}], "angle has no effect without sigma_y"),
        ([{"step": "downscale", "kernel": "cubic"}], "kernel = 'cubic'"),
        ([{"step": "downscale", "kernels": "area"}], "kernels is not a setting; did you mean"),
        ([{"step": "resize", "factor": 3}], "factor = 3"),
        ([{"step": "jpeg", "quality": 60}], "steps does not end with the low-resolution size"),
        ({"x": [DOWN, {"step": "resize", "factor": 0.5}]}, "x resizes frames after the last down"),
    ],
)
def test_a_mistake_is_one_line(degradation: Any, message: str) -> None:
    line = refusal(degradation)
    assert re.search(message, line), line
    assert line.startswith("data.degradation: ")
    assert "\n" not in line


def test_scale_1_needs_a_degradation_and_kernels_that_have_it() -> None:
    assert "scale = 1 leaves low-resolution frames equal" in refusal(None, scale=1)
    assert "bd, which exists for x2, x3, x4, x8, not x1" in refusal("bd", scale=1)
    assert "not x5" in refusal([{**DOWN, "kernel": ["area", "bd"]}], scale=5)
    assert data("compressed", scale=1).scale == 1
    assert data([{"step": "jpeg", "quality": 60}], scale=1).scale == 1


def test_names_lists_and_several() -> None:
    assert pipelines("bi") == {"bi": READY["bi"]}
    steps = [DOWN, {"step": "jpeg", "quality": 60}]
    assert list(pipelines(steps)) == ["steps"]
    several = pipelines({"clean": "bi", "harsh": None, "web": steps})
    assert several == {"clean": READY["bi"], "web": pipelines(steps)["steps"]}
    assert several["web"][1].model_dump() == {"step": "jpeg", "quality": (60, 60)}


def test_ready_made_pipelines_are_valid_at_every_scale_of_a_network() -> None:
    for name in READY:
        for scale in (2, 3, 4, 8):
            assert data(name, scale=scale).degradation == name


def test_settings_about_dealing_need_what_they_deal() -> None:
    unused = [one.key for one in data(None, degradation_seed=3).without_effect("data.")]
    assert unused == ["data.degradation_seed"]
    several = data({"a": "bi", "b": "compressed"}, degradation_alpha=0.1)
    assert [one.key for one in several.without_effect()] == ["degradation_alpha"]


@pytest.mark.parametrize(
    ("model", "way"),
    [
        ("tiny", "make them equal, by model.scale=1 or data.scale=4"),
        ("vrt", "make them equal, by model.upscale=1 or data.scale=4"),
        ("rvrt", "rvrt has no other scale: set data.scale=4, or take another network"),
        ("iart", "iart has no other scale: set data.scale=4, or take another network"),
    ],
)
def test_a_network_says_whether_it_can_restore_without_enlarging(model: str, way: str) -> None:
    settings = ["data.scale=1", "data.degradation=compressed", f"model={{name: {model}}}"]
    with pytest.raises(
        UserError, match=r"data\.scale = 1, but the network enlarges by 4"
    ) as refused:
        load_config("demo", settings)
    assert str(refused.value).endswith(way)
