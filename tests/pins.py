"""`make constraints`: write constraints.txt, the versions that the Makefile installs.

pip resolves the package with its extras for this Python and for the oldest that is supported, which
newer releases of some packages have left behind: those get a pin for each.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = "demo,test,dev,docs,metrics,privacy,report,onnx"
OLDEST, NEXT = "3.10", "3.11"
# They follow from torch's own pins, and differ by platform. The last two are pip's.
FREE = re.compile(r"fedvsr|nvidia-.*|cuda-.*|triton|pip|setuptools")
HEAD = """\
# Versions for `pip install -c constraints.txt`, as the Makefile and cluster/Dockerfile use it.
# Written by `make constraints` for Python {oldest} and {python}.
"""


@dataclass(frozen=True)
class Release:
    """A release of a package, and the Pythons that it supports."""

    version: str
    requires_python: str = ""

    def supports(self, python: str) -> bool:
        return SpecifierSet(self.requires_python).contains(python)


def resolve(python: str, pins: dict[str, Release]) -> dict[str, Release]:
    """What pip would install for an interpreter, by package.

    Args:
        python: the interpreter.
        pins: releases to keep.

    Raises:
        subprocess.CalledProcessError: pip finds no versions that agree.
    """
    with tempfile.TemporaryDirectory() as folder:
        kept, report = Path(folder) / "kept.txt", Path(folder) / "report.json"
        kept.write_text("".join(f"{name}=={pin.version}\n" for name, pin in pins.items()))
        command = [python, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--disable-pip-version-check", "--only-binary", ":all:"]
        command += ["--report", str(report), "-c", str(kept), f"{ROOT}[{EXTRAS}]"]
        subprocess.run(command, check=True)
        packages = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    releases = {
        normal(package["name"]): Release(package["version"], package.get("requires_python", ""))
        for package in packages
    }
    return {name: release for name, release in releases.items() if not FREE.fullmatch(name)}


def normal(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, Release]:
    """The releases that are installed here."""
    releases = {normal(d.metadata["Name"]): Release(d.version) for d in distributions()}
    return {name: release for name, release in releases.items() if not FREE.fullmatch(name)}


def lines(newer: dict[str, Release], oldest: dict[str, Release]) -> list[str]:
    """A pin a package, or two where the oldest Python needs another version."""
    before = f'python_version < "{NEXT}"'
    since = f'python_version >= "{NEXT}"'
    pins = list[str]()
    for name in sorted(newer.keys() | oldest.keys()):
        new, old = (
            releases[name].version if name in releases else None for releases in (newer, oldest)
        )
        if new in (old, None) or old is None:
            pins.append(f"{name}=={new or old}")
        else:
            pins += [f"{name}=={new}; {since}", f"{name}=={old}; {before}"]
    return pins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--oldest", default="python3.10", help="Interpreter of the oldest Python.")
    parser.add_argument(
        "--installed", action="store_true", help="Keep the versions installed here where possible."
    )
    arguments = parser.parse_args()
    newer = resolve(sys.executable, installed() if arguments.installed else {})
    # The same releases on both, where they support both.
    both = {name: release for name, release in newer.items() if release.supports(OLDEST)}
    oldest = resolve(arguments.oldest, both)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    text = HEAD.format(oldest=OLDEST, python=python) + "".join(
        f"{line}\n" for line in lines(newer, oldest)
    )
    (ROOT / "constraints.txt").write_text(text)


if __name__ == "__main__":
    main()
