"""constraints.txt, and how `make constraints` writes it."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

from tests.pins import EXTRAS, ROOT, Release, lines, normal


def test_the_oldest_python_has_its_own_pin_of_what_has_left_it_behind() -> None:
    newer = {"both": Release("2.0"), "left": Release("3.0", ">=3.11"), "new": Release("1.0")}
    oldest = {"both": Release("2.0"), "left": Release("2.9"), "old": Release("0.1")}
    assert not newer["left"].supports("3.10")
    assert lines(newer, oldest) == [
        "both==2.0",
        'left==3.0; python_version >= "3.11"',
        'left==2.9; python_version < "3.11"',
        "new==1.0",
        "old==0.1",
    ]


def requirements() -> list[Requirement]:
    """What setup.cfg asks for, with the extras that constraints.txt covers."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    text = setup["options"]["install_requires"] + "".join(extras[e] for e in EXTRAS.split(","))
    rows = [line.strip() for line in text.splitlines()]
    return [Requirement(row) for row in rows if row and not row.startswith("#")]


def pins(path: Path, python: str) -> dict[str, str]:
    """The pins of a constraints file that hold for a Python, by package."""
    rows = [Requirement(row) for row in path.read_text().splitlines() if not row.startswith("#")]
    environment = {**default_environment(), "python_version": python}
    chosen = [row for row in rows if row.marker is None or row.marker.evaluate(environment)]
    assert len({normal(row.name) for row in chosen}) == len(chosen), "a package is pinned twice"
    return {normal(row.name): str(row.specifier).removeprefix("==") for row in chosen}


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.13"])
def test_every_requirement_is_pinned_within_its_bounds(python: str) -> None:
    pinned = pins(ROOT / "constraints.txt", python)
    environment = {**default_environment(), "python_version": python}
    for requirement in requirements():
        name = normal(requirement.name)
        if name == "setuptools" or (
            requirement.marker and not requirement.marker.evaluate(environment)
        ):
            continue
        assert name in pinned, f"{name} has no pin; run: make constraints"
        assert requirement.specifier.contains(pinned[name]), f"{requirement}: {pinned[name]}"


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    lowest = pins(ROOT / "tests" / "constraints-lowest.txt", "3.10")
    for requirement in requirements():
        bound = re.fullmatch(r">=([\d.]+)", str(requirement.specifier))
        name = normal(requirement.name)
        if bound and name in lowest:
            # `>=10` is tested with the last 10.x that installs beside the others.
            assert lowest[name].startswith(bound[1]), f"{requirement}: {lowest[name]}"
