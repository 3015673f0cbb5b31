"""What the package catches: a wide `except` says why it is that wide."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedvsr

SOURCES = sorted(Path(fedvsr.__file__).parent.rglob("*.py"))
WIDE = {"Exception", "BaseException"}


def names_of(node: ast.expr | None) -> set[str]:
    """The names of the exceptions that a handler or a call names; a bare `except` names all."""
    if node is None:
        return set(WIDE)
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def unexplained(text: str) -> Iterator[int]:
    """The lines of a module at which it catches everything, without a comment as the next line.

    `suppress(Exception)` says nothing to anybody, so no comment excuses it.
    """
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler):
            is_explained = lines[node.lineno].strip().startswith("#")
            if names_of(node.type) & WIDE and not is_explained:
                yield node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            yield from (node.lineno for argument in node.args if names_of(argument) & WIDE)


def test_a_wide_except_says_why() -> None:
    lines = [f"{path}:{line}" for path in SOURCES for line in unexplained(path.read_text())]
    assert lines == []


@pytest.mark.parametrize(
    "handler",
    [
        "except Exception:",
        "except BaseException as error:",
        "except (OSError, Exception):",
        "except:",
    ],
)
def test_a_wide_except_without_a_reason_is_seen(handler: str) -> None:
    assert list(unexplained(f"try:\n    f()\n{handler}\n    pass\n")) == [3]
    assert list(unexplained(f"try:\n    f()\n{handler}\n    # Any.\n    raise\n")) == []
    assert list(unexplained("with contextlib.suppress(Exception):\n    # Any.\n    f()\n")) == [1]
