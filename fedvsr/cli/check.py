"""The command `check`: the contract tests, on an algorithm or network of one's own."""

from __future__ import annotations

import ast
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fedvsr.cli.common import say
from fedvsr.errors import UserError

# Called with what is checked, and a folder for clips.
Contract = Callable[[Any, Path], None]


def check(
    plugin: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A file (./fedexp.py), an installed module, or a known name."
        ),
    ],
) -> None:
    """Check an algorithm or network of your own by the tests that the packaged ones pass."""
    subject, contracts, path = _load(plugin)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for contract in contracts:
            found = _broken(contract, subject, Path(folder), path)
            failed += found is not None
            name = contract.__name__.replace("_", " ")
            say(f"ok    {name}" if found is None else f"FAIL  {name}: {found}")
    if failed:
        say(f"{plugin}: {failed} of {len(contracts)} contracts do not hold")
        raise typer.Exit(1)
    say(f"{plugin}: all {len(contracts)} contracts hold")


def _broken(contract: Contract, subject: object, folder: Path, path: str) -> str | None:
    """What is wrong, in one line; None if the contract holds."""
    from fedvsr.contracts import BrokenError

    try:
        contract(subject, folder)
    except BrokenError as error:
        return str(error)
    except Exception as error:
        # The code under test may raise anything.
        lines = traceback.extract_tb(error.__traceback__)
        own = [f"{Path(path).name}, line {f.lineno}: " for f in lines if f.filename == path]
        text = (str(error).strip().splitlines() or [""])[0]
        return f"{own[-1] if own else ''}{type(error).__name__}: {text}"
    return None


def _load(name: str) -> tuple[object, Sequence[Contract], str]:
    """What to check, its contracts, and the path of its file.

    Raises:
        UserError: it is neither an algorithm nor a network, or cannot be loaded.
    """
    from fedvsr import algorithms, models, plugins

    path = plugins.beside(Path.cwd(), name)
    kinds = [algorithms.KIND, models.KIND]
    if plugins.is_file(name):
        source = plugins.read("algorithm", Path(path)).source or b""
        kinds = [models.KIND if _defines(source, "Model") else algorithms.KIND]
    found = {kind.name: plugins.section_class(kind, path) for kind in kinds}
    section = next((config() for config in found.values() if config is not None), None)
    if section is None:
        raise UserError(
            f"{name} is neither an algorithm ({', '.join(algorithms.KIND.known())}) nor a network "
            f"({', '.join(models.KIND.known())}); a file ends with .py"
        )
    if section.plugin is not None:
        path = str(section.plugin.module().__file__)
    if found.get("algorithm"):
        from fedvsr.contracts import algorithm

        return algorithms.build(section), algorithm.CONTRACTS, path
    from fedvsr.contracts import network

    return type(section)(size="demo"), network.CONTRACTS, path


def _defines(source: bytes, name: str) -> bool:
    """Whether a file's own level has, or imports, this name."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError):
        # Loading it reports the line.
        return False
    names = set[str]()
    for one in statements:
        if isinstance(one, ast.ClassDef):
            names.add(one.name)
        elif isinstance(one, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in one.names}
    return name in names
