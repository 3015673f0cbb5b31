"""The figures on FedVSR's weights in docs/explanation/method.md are those of the study's tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.study import weights

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "method.md"


def test_the_page_has_the_figures_of_the_tables() -> None:
    found = weights.figures()
    text = " ".join(PAGE.read_text().split())
    low, high, count = found.correlations["all methods"]
    assert f"{low:.3f} to {high:.3f} over {count} losses" in text
    assert f"with FedAvg alone {found.correlations['FedAvg'][0]:.3f}" in text
    linear, constant = (found.deviations.loc[name] for name in ("linear", "constant"))
    assert f"by {linear['pure']:.0%} on average" in text.replace(" %", "%")
    assert f"mixing by {linear['mixed']:.1%}" in text.replace(" %", "%")
    assert f"{constant['pure']:.0%} and {constant['mixed']:.0%}" in text.replace(" %", "%")
    assert found.num_rounds == 180
    assert re.search(r"python -m tests\.study\.weights", text)


def test_weights_by_hand() -> None:
    # Losses 1 and 3: weights 3/4 and 1/4, which are 50 % from uniform.
    import pandas as pd

    cohort = pd.DataFrame({"loss": [1.0, 3.0], "round_idx": 1, "num_rounds": 2})
    constant, linear = weights._deviations(cohort)
    assert constant["pure"] == pytest.approx(0.5)
    # The exponent 1/2: 1 and 0.57735.
    assert linear["pure"] == pytest.approx(2 / 1.57735 - 1, abs=1e-5)
    # Hellinger distance of (3/4, 1/4) from uniform: sqrt(1 - (sqrt(3/8) + sqrt(1/8))), 0.18459.
    share = (0.184592 - 0.05) / 0.95
    assert constant["mixed"] == pytest.approx(0.5 * share, abs=1e-5)
