"""The demo with each network."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvsr.config import load_config
from fedvsr.lookup import names
from fedvsr.records import load_results
from tests.integration.running import run_serially


@pytest.mark.slow
@pytest.mark.parametrize("name", names("fedvsr.models"))
def test_the_demo_ends_above_bicubic(name: str, tmp_path: Path) -> None:
    run_serially(
        load_config("demo", [f"model.name={name}", "evaluation.every_rounds=10"]), tmp_path
    )
    scores = load_results(tmp_path).evaluations
    last = scores[scores["round_idx"] == 10]
    # Single rounds move the score by some tenths of a decibel.
    assert (last["psnr_db"] - last["bicubic_psnr_db"]).mean() > 0.2
