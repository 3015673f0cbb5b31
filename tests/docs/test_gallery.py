"""The gallery shows what `make screenshots` makes, each picture with the command that draws it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docs.screenshots import ELSEWHERE, FOLDER, PICTURES

PAGE = Path(__file__).parents[2] / "docs" / "gallery.md"
SHOWN = re.compile(r"!\[(.*?)\]\(images/(.*?)\)")


def test_the_gallery_shows_each_picture_that_the_command_makes() -> None:
    shown = [name for _, name in SHOWN.findall(PAGE.read_text())]
    assert len(shown) == len(set(shown))
    assert {*PICTURES} <= {*shown} <= {*PICTURES, *ELSEWHERE}
    sizes = {name: (FOLDER / name).stat().st_size for name in shown}
    assert sum(sizes.values()) < 1_500_000, sizes


def test_each_picture_has_its_command_below() -> None:
    """`test_commands.py` checks that the commands exist."""
    text = PAGE.read_text()
    found = list(SHOWN.finditer(text))
    ends = [picture.start() for picture in found[1:]] + [len(text)]
    for picture, end in zip(found, ends, strict=True):
        assert len(picture[1]) > 20, f"{picture[2]}: a text for those who cannot see it"
        below = text[picture.end() : end]
        assert re.search(r"^```\n(fedvsr|make) ", below, flags=re.M), f"{picture[2]}: no command"
