from __future__ import annotations

from pathlib import Path

from fedvsr import algorithms


def test_the_reference_page_is_up_to_date() -> None:
    page = Path(__file__).parents[3] / "docs" / "reference" / "algorithms.md"
    assert page.read_text() == algorithms.reference(), (
        "run: fedvsr algorithms --markdown > docs/reference/algorithms.md"
    )


def test_rows_state_what_scaffold_costs() -> None:
    row = dict(zip(algorithms.COLUMNS, algorithms.rows()[-2], strict=True))
    assert (row["algorithm"], row["client keeps"], row["up"]) == ("scaffold", "control", "2x")


def test_rows_state_what_stays_with_a_client() -> None:
    keeps = {row[0]: row[1] for row in algorithms.rows()}
    assert keeps["fedper"] == "own (head)"
    assert keeps["fedbn"] == "own (norm)"
    assert keeps["fedavg"] == "-"
