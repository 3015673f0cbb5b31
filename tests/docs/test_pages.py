"""The documentation's links lead somewhere, and its generated pages are up to date."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import fedvsr
from tests.docs.references import FOLDER, pages

ROOT = Path(__file__).parents[2]
FILES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "cluster").rglob("*.md")]


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs name them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{path}: {target} is missing"
        assert not anchor or anchor in anchors(file), f"{path}: {target} is not a heading"


def test_every_page_has_its_entry() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    named = re.findall(r"^ +- ([\w./-]+\.(?:md|ipynb))$", text, flags=re.M)
    docs = ROOT / "docs"
    pages = [*docs.rglob("*.md"), *docs.rglob("*.ipynb")]
    assert sorted(named) == sorted(str(path.relative_to(docs)) for path in pages)


def test_readme_lists_every_folder() -> None:
    (tree,) = re.findall(
        r"^```text\n(fedvsr/ .*?)^```", (ROOT / "README.md").read_text(), re.M | re.S
    )
    inner = re.findall(r"^  (\w+)/ ", tree, flags=re.M)
    packages = sorted(path.parent.name for path in (ROOT / "fedvsr").glob("*/__init__.py"))
    assert sorted(inner) == packages
    outer = re.findall(r"^(\w+)/ ", tree, flags=re.M)
    assert all((ROOT / name).is_dir() for name in outer)


def test_the_citation_names_this_release() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == fedvsr.__version__
    released = f"## {cited['version']}, {cited['date-released']}"
    assert released in (ROOT / "CHANGELOG.md").read_text()
    assert set(cited) >= {"cff-version", "message", "title", "authors"}


def test_generated_pages_are_what_the_code_says() -> None:
    for name, text in pages().items():
        assert (FOLDER / name).read_text() == text, f"{name} is old; run: make references"
