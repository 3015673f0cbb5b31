"""The table of promises in CONTRIBUTING.md: its tests exist, and run in the tier that it names."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(
    r"^\| (?P<promise>[^|]+) \| `(?P<file>[\w/]+\.py)::(?P<name>\w+)` \| (?P<tier>.+) \|$"
)
# By marker; a test without any of them runs in `make test`.
TIERS = {"gpu": "gpu", "slow": "slow", "benchmark": "benchmark", "full": "make test-all"}


def rows() -> list[dict[str, str]]:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text.partition("| promise | test | tier |\n|---|---|---|\n")[2].partition("\n\n")[0]
    matches = [(line, ROW.match(line)) for line in table.splitlines()]
    assert matches
    wrong = [line for line, match in matches if match is None]
    assert not wrong, f"not `promise | test | tier`: {wrong}"
    return [match.groupdict() for _, match in matches if match]


def tiers_of(file: str, name: str) -> set[str]:
    """The tiers that a test function runs in, by its marks: several if its parameters differ."""
    module = importlib.import_module("tests." + file.removesuffix(".py").replace("/", "."))
    function = getattr(module, name)
    marks = [*as_list(getattr(module, "pytestmark", [])), *getattr(function, "pytestmark", [])]
    always = {mark.name for mark in marks}
    return {tier(always | own) for own in marks_of_parameters(marks)}


def tier(names: set[str]) -> str:
    return next((tier for mark, tier in TIERS.items() if mark in names), "make test")


def marks_of_parameters(marks: list[pytest.Mark]) -> Iterator[set[str]]:
    """The marks of each parameter of a test, or of the whole test if it has no parameters."""
    values = [value for mark in marks if mark.name == "parametrize" for value in mark.args[1]]
    for value in values or [None]:
        yield {mark.name for mark in getattr(value, "marks", ())}


def as_list(marks: Any) -> list[Any]:
    return marks if isinstance(marks, list) else [marks]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["name"])
def test_a_promises_test_exists_and_runs_in_the_tier_named(row: dict[str, str]) -> None:
    path = ROOT / "tests" / row["file"]
    assert path.is_file(), f"there is no {path}"
    assert f"\ndef {row['name']}(" in path.read_text(), f"{row['file']} has no test {row['name']}"
    assert row["tier"] in tiers_of(row["file"], row["name"])


def test_every_tier_that_the_table_names_is_a_tier() -> None:
    assert {row["tier"] for row in rows()} <= {"make test", *TIERS.values()}
