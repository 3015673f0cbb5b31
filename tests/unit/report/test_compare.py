"""Runs compared: what differs in their settings, and by how much in their scores."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from fedvsr.cli import app
from fedvsr.errors import UserError
from fedvsr.report.compare import Comparison, compare
from tests.unit.report.synthetic import write_run

LEAD_DB = {"a": 1.0, "b": 2.0, "c": 9.0}


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """The second run is 1 and 2 dB better on the clips that both have, and scored one more."""
    local = {"local": {"lr": 1e-3, "steps": 4}}
    # What is called at the end changes no number.
    other = {"local": {"lr": 2e-3, "steps": 4}, "on_finish": "notify-send done"}
    return [
        write_run(tmp_path, "one", psnr_db=lambda r, clip: 30.0 + r, settings=local),
        write_run(
            tmp_path,
            "two",
            algorithm="fedvsr",
            seed=2,
            clips=("b", "a", "c"),
            psnr_db=lambda r, clip: 30.0 + r + LEAD_DB[clip],
            settings=other,
        ),
    ]


@pytest.fixture
def both(folders: list[Path]) -> Comparison:
    return compare(folders)


def test_settings_that_differ(both: Comparison) -> None:
    assert both.run_ids == ["one", "two"]
    assert both.settings.to_dict("index") == {
        "seed": {"one": 1, "two": 2},
        "algorithm.name": {"one": "fedavg", "two": "fedvsr"},
        "local.lr": {"one": 1e-3, "two": 2e-3},
    }


def test_scores_of_the_clips_that_all_have(both: Comparison) -> None:
    assert both.clip_ids == ["a", "b"]
    psnr_db = both.scores.loc[("held-out", "psnr_db")]
    assert psnr_db["one"].to_dict() == {"a": 32.0, "b": 32.0}
    assert psnr_db["two"].to_dict() == {"a": 33.0, "b": 34.0}
    assert "lpips" not in both.scores.index.unique(level="metric"), "nobody scored it"
    assert both.curves["two"].tolist() == [31.5, 32.5, 33.5]


def test_differences_and_their_intervals(both: Comparison) -> None:
    row = both.means.loc[("held-out", "psnr_db", "two")]
    # t(0.975, 1) = 12.706205; the standard error of 1 and 2 is 0.5.
    expected = {"mean": 33.5, "difference": 1.5, "low": 1.5 - 6.353102, "high": 1.5 + 6.353102}
    assert row.to_dict() == pytest.approx(expected, abs=1e-6)
    reference = both.means.loc[("held-out", "psnr_db", "one")]
    assert reference["mean"] == 32.0
    assert reference[["difference", "low", "high"]].isna().all()


def test_a_run_with_other_clips_is_refused(folders: list[Path], tmp_path: Path) -> None:
    other = write_run(tmp_path, "other", clips=("z",))
    with pytest.raises(UserError, match="one, other have no test clip in common"):
        compare([folders[0], other])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["one"], "name two runs or more to compare; one is one"),
        (["one", "one"], "one is named twice; name different runs"),
        (["one", "on"], "one is named twice; name different runs"),
        (["one", "none"], "there is no run none in .*; did you mean 'one'"),
        (["one", "new"], "new has no score yet"),
        (["one", "two", "--picture", "x.gif"], "pictures are written as .png or .pdf"),
    ],
)
def test_what_cannot_be_compared(
    names: list[str], message: str, folders: list[Path], tmp_path: Path
) -> None:
    write_run(tmp_path, "new", clips=())
    done = CliRunner().invoke(app, ["compare", *names, "--out", str(tmp_path)])
    assert isinstance(done.exception, UserError)
    with pytest.raises(UserError, match=message):
        raise done.exception


def test_the_command_prints_both_tables_and_draws(folders: list[Path], tmp_path: Path) -> None:
    picture = tmp_path / "compared.png"
    words = ["compare", "one", "tw", "--out", str(tmp_path), "--picture", str(picture)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    printed = pd.Series(done.stdout.splitlines()).str.split()
    assert ["local.lr", "0.001", "0.002"] in printed.tolist()
    assert [
        "held-out",
        "PSNR",
        "(dB)",
        "two",
        "33.50",
        "+1.50",
        "-4.85",
        "to",
        "+7.85",
    ] in printed.tolist()
    assert "means of 2 test clips: a, b" in done.stdout
    assert picture.stat().st_size > 5000


def test_a_notebook_shows_both_tables(both: Comparison) -> None:
    html = both._repr_html_()
    assert html.count("<table") == 2
    assert "local.lr" in html
