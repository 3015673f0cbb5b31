"""Federated video super-resolution experiments on a Ray cluster.

`import fedvsr` loads neither torch nor Ray; modules that need them are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedvsr.api import load_run, run, stream, tune
    from fedvsr.config import ExperimentConfig, load_config
    from fedvsr.errors import UserError
    from fedvsr.records import Results, load_results
    from fedvsr.runs.run import Run

__version__ = "0.1.0"
__all__ = [
    "ExperimentConfig",
    "Results",
    "Run",
    "UserError",
    "__version__",
    "load_config",
    "load_results",
    "load_run",
    "run",
    "stream",
    "tune",
]

# The module that defines each public name.
_HOMES = {
    "ExperimentConfig": "config",
    "Results": "records",
    "Run": "runs.run",
    "UserError": "errors",
    "load_config": "config",
    "load_results": "records",
    "load_run": "api",
    "run": "api",
    "stream": "api",
    "tune": "api",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"fedvsr.{_HOMES[name]}"), name)
    if name in {"data", "losses", "metrics", "models", "wavelets"}:
        return importlib.import_module(f"fedvsr.{name}")
    raise AttributeError(f"module 'fedvsr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
