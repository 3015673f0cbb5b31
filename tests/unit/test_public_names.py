"""What users build on changes only on purpose: public names, and the keys of their files."""

from __future__ import annotations

import difflib

import pytest

from tests.docs.frozen import FOLDER, lists


@pytest.mark.parametrize("name", ["public_names.txt", "configuration_keys.txt"])
def test_public_names_and_keys_change_only_on_purpose(name: str) -> None:
    listed, now = (FOLDER / name).read_text().splitlines(), lists()[name].splitlines()
    changes = [
        line
        for line in difflib.unified_diff(listed, now, lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]
    assert not changes, (
        f"tests/unit/{name} lists what users build on, and this has changed:\n"
        + "\n".join(changes)
        + "\nIf this is intended, write the list again by `python -m tests.docs.references` and "
        "tell users in CHANGELOG.md."
    )
