"""Find an algorithm or a network by its module's name: `algorithms/fedvsr.py` is `fedvsr`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType

from fedvsr.errors import UserError

_SHARED = ("base", "origin", "spec")


def names(package: str) -> list[str]:
    """Names of the algorithms or networks in `package` (a dotted name), sorted.

    Modules with a leading underscore, `base`, `origin` and `spec` are shared by them and left out.
    """
    return list(_names(package))


@lru_cache
def _names(package: str) -> tuple[str, ...]:
    # The package itself is not imported: a shell that completes a name does not wait for it.
    spec = find_spec(package)
    assert spec
    found = (module.name for module in pkgutil.iter_modules(spec.submodule_search_locations))
    return tuple(sorted(n for n in found if n not in _SHARED and not n.startswith("_")))


def load(package: str, name: str) -> ModuleType:
    """Import `package.name`.

    Raises:
        UserError: there is no such module; the message lists the existing ones.
    """
    known = names(package)
    if name not in known:
        kind = package.rpartition(".")[2]
        raise UserError(
            f"{name!r} is not one of the {kind}{did_you_mean(name, known)} (there are: "
            f"{', '.join(known)})"
        )
    return importlib.import_module(f"{package}.{name}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the word of `known` closest to `word`; empty if none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
