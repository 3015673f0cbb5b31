"""Federated video super-resolution experiments on a Ray cluster.

`import fedvsr` loads neither torch nor Ray; modules that need them are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedvsr.records import load_results

__version__ = "0.1.0"
__all__ = ["__version__", "load_results"]


def __getattr__(name: str) -> Any:
    if name == "load_results":
        return importlib.import_module("fedvsr.records").load_results
    if name in {"data", "losses", "metrics", "models", "wavelets"}:
        return importlib.import_module(f"fedvsr.{name}")
    raise AttributeError(f"module 'fedvsr' has no attribute {name!r}")
