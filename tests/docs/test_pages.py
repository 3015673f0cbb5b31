"""The documentation's links lead somewhere, and its generated pages are up to date."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
import yaml

import fedvsr
from tests.docs.references import FOLDER, pages

ROOT = Path(__file__).parents[2]
NOTEBOOKS = [*(ROOT / "docs").rglob("*.ipynb")]
FILES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "cluster").rglob("*.md")]
FILES += NOTEBOOKS


def prose(path: Path) -> str:
    """The text of a page or notebook, without code."""
    text = path.read_text()
    if path in NOTEBOOKS:
        cells = nbformat.reads(text, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site name them."""
    titles = re.findall(r"^#+ (.+)$", prose(path), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{path}: {target} is missing"
        assert not anchor or anchor in anchors(file), f"{path}: {target} is not a heading"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_headings_skip_no_level(path: Path) -> None:
    """The site's builder takes a skipped level for an error."""
    levels = [len(marks) for marks in re.findall(r"^(#+) ", prose(path), flags=re.M)]
    assert levels[0] == 1
    assert all(level <= above + 1 for above, level in pairwise(levels))


def test_every_page_has_its_entry() -> None:
    docs = ROOT / "docs"
    toc = yaml.safe_load((docs / "_toc.yml").read_text())
    named = [entry["file"] for part in toc["subtrees"] for entry in part["entries"]]
    pages = [*docs.rglob("*.md"), *docs.rglob("*.ipynb")]
    paths = sorted(str(page.relative_to(docs).with_suffix("")) for page in pages)
    assert sorted([toc["root"], *named]) == paths, "docs/_toc.yml lists the pages of the site"


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
