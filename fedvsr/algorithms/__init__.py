"""The federated algorithms, one per file; the file's name is the configuration's `algorithm.name`.

A file has a `Config`, which is a section of the configuration, and an `Algorithm`: mathematics on
values that uses neither Ray nor files and keeps nothing between calls. Hooks default to FedAvg, so
a method shows only what it does differently.
"""

from __future__ import annotations

import inspect

from fedvsr.algorithms.base import AlgorithmConfig, FedAvg
from fedvsr.lookup import load, names
from fedvsr.plugins import Kind, module_of
from fedvsr.section import NamedSection

KIND = Kind("algorithm", __name__, __name__, {"Config": AlgorithmConfig, "Algorithm": FedAvg})
"""What an algorithm that is a plug-in must have."""
COLUMNS = ("algorithm", "client keeps", "server keeps", "down", "up", "extra compute", "source")
"""Columns of `rows`; `down` and `up` count vectors of shared parameters, a client and round."""


def build(config: NamedSection) -> FedAvg:
    """The algorithm that a section of `algorithms/<name>.py`, or of a plug-in, configures."""
    algorithm: FedAvg = module_of(KIND, config).Algorithm(config)
    return algorithm


def rows(entry_points: bool = True) -> list[tuple[str, ...]]:
    """What each algorithm sends, keeps and computes, in `COLUMNS`.

    Args:
        entry_points: whether those of other installed packages are listed too.
    """
    modules = KIND.modules() if entry_points else {n: load(__name__, n) for n in names(__name__)}
    kinds = {name: (module.Algorithm, module.Config) for name, module in modules.items()}
    return [
        (
            name,
            ", ".join((*kind.client_state, *_own(config))) or "-",
            ", ".join(kind.server_state) or "-",
            _down(kind),
            f"{len(kind.upload)}x",
            kind.extra_compute,
            getattr(kind, "source", "-"),
        )
        for name, (kind, config) in kinds.items()
    ]


def reference() -> str:
    """The reference page, Markdown: the table, then each method's docstring and own settings."""
    lines = [
        "# Algorithms",
        "",
        "Written by `fedvsr algorithms --markdown`. `down` and `up` say how much a client receives",
        "and sends in a round; `client keeps` and `server keeps` name vectors that are remembered.",
        "The unit of all of them is the size of the shared parameters: those of the whole network,",
        "but for what `local.train`, `algorithm.keep` and `algorithm.share` leave out. K is the",
        "number of a round's clients.",
        "`own (head)` is the part of the network that stays with a client, by default the head.",
        "",
        _row(COLUMNS),
        _row(["---"] * len(COLUMNS)),
        *(_row(row) for row in rows(entry_points=False)),
        "",
        "## Settings of all algorithms",
        "",
        "Every method can be combined with the detail loss, the loss-aware weights and the",
        "proximal term, e.g. `algorithm: {name: fedadam, lambda_hifr: 1, weights: loss_aware,",
        "mu: 1e-3}`. A method that weighs clients itself has no choice of `weights`. A setting",
        "that differs from its default and has no effect, such as `alpha` without",
        "`weights: loss_aware`, is refused.",
        "",
        *_settings(AlgorithmConfig, None),
    ]
    for name in names(__name__):
        module = load(__name__, name)
        lines += ["", f"## {name}", "", inspect.cleandoc(module.__doc__ or ""), ""]
        lines += [inspect.cleandoc(module.Algorithm.__doc__), ""]
        lines += _settings(module.Config, AlgorithmConfig) or ["No settings of its own."]
        if module.Config.ignored:
            ignored = ", ".join(f"`{setting}`" for setting in module.Config.ignored)
            lines += ["", f"It does not use {ignored}."]
    return "\n".join(lines) + "\n"


def _own(config: type[NamedSection]) -> tuple[str, ...]:
    """What stays with a client of the network, if the method by default keeps or shares a part."""
    keep, share = (config.model_fields[name].default for name in ("keep", "share"))
    if share:
        return (f"own (all but {', '.join(share)})",)
    return (f"own ({', '.join(keep)})",) if keep else ()


def _settings(config: type[NamedSection], base: type[NamedSection] | None) -> list[str]:
    """A table of the fields whose default or type differs from that of `base`."""
    inherited = base.model_fields if base else {}
    table = []
    for name, field in config.model_fields.items():
        known = inherited.get(name)
        same = known and (known.default, known.annotation) == (field.default, field.annotation)
        if name != "name" and not same:
            table.append(_row((f"`{name}`", f"`{field.default}`", field.description or "")))
    return [_row(("setting", "default", "meaning")), _row(["---"] * 3), *table] if table else []


def _down(kind: type[FedAvg]) -> str:
    of_each = ["K" for name in kind.broadcast if name in kind.cohort_state]
    fixed = len(kind.broadcast) - len(of_each)
    return f"({' + '.join([str(fixed), *of_each])})x" if of_each else f"{fixed}x"


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cells)} |"
