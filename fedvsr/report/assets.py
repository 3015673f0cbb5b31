"""Templates, styles and scripts of pages, which the report and the live page share."""

from __future__ import annotations

from importlib import resources

from jinja2 import BaseLoader, ChoiceLoader, Environment, PackageLoader, select_autoescape


def environment(*others: BaseLoader) -> Environment:
    """What renders the templates in `static`, after those of `others`."""
    return Environment(
        loader=ChoiceLoader([*others, PackageLoader("fedvsr.report", "static")]),
        autoescape=select_autoescape(["j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )


def static(name: str, package: str = "fedvsr.report") -> str:
    """The text of a file in a package's folder `static`."""
    return (resources.files(package) / "static" / name).read_text(encoding="utf-8")
