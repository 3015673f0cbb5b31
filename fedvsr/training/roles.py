"""Which parameters of a network are trained, and which of those are shared, by the settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedvsr import algorithms
from fedvsr.errors import UserError
from fedvsr.layout import Layout, Role
from fedvsr.models import on_meta
from fedvsr.params import ParamTable
from fedvsr.training.config import LocalConfig
from fedvsr.training.requirements import model_spec

TRAFFIC_COLUMNS = ("algorithm", "shared parameters", "of all", "down, MB", "up, MB")
"""Columns of `traffic_rows`; bytes are those that a client receives and sends in a round."""

if TYPE_CHECKING:
    from torch import nn

    from fedvsr.algorithms.base import AlgorithmConfig
    from fedvsr.models.spec import ModelConfig, ModelSpec


def layout_of(
    network: nn.Module, spec: ModelSpec, algorithm: AlgorithmConfig, local: LocalConfig
) -> Layout:
    """The role of each parameter of a network.

    A parameter that the network itself does not train (`requires_grad` is False) is frozen, as is
    one outside `local.train`. Of the others, those of `algorithm.keep`, or outside
    `algorithm.share`, are a client's own.

    Args:
        network: as `models.build_fresh` makes it.
        spec: its rules, which name the parts.
        algorithm: the algorithm's section.
        local: how clients train.

    Raises:
        UserError: nothing is shared, or nothing is kept although a part is to be.
    """

    def within(name: str, parts: Sequence[str]) -> bool:
        return any(spec.in_part(part, name) for part in parts)

    def role(name: str, parameter: nn.Parameter) -> Role:
        if not parameter.requires_grad or (local.train and not within(name, local.train)):
            return "frozen"
        if algorithm.share and not within(name, algorithm.share):
            return "own"
        return "own" if within(name, algorithm.keep) else "shared"

    roles = tuple(role(*entry) for entry in network.named_parameters())
    key = "share" if algorithm.share else "keep"
    parts = ", ".join(algorithm.share or algorithm.keep)
    trained = f" of what local.train = [{', '.join(local.train)}] trains" if local.train else ""
    if "shared" not in roles:
        raise UserError(
            f"algorithm.{key} = [{parts}] leaves nothing{trained} to share; change it, or train "
            "clients alone by algorithm.name=local"
            if parts
            else "no parameter of the network is trained; name another part in local.train"
        )
    if parts and "own" not in roles:
        raise UserError(
            f"algorithm.{key} = [{parts}] leaves nothing{trained} with a client; leave it out, or "
            "name another part"
        )
    return Layout(ParamTable.of(network), roles)


def traffic_rows(model: ModelConfig) -> list[tuple[str, ...]]:
    """What travels with a network by each algorithm's defaults, in `TRAFFIC_COLUMNS`."""
    network, spec, rows = on_meta(model), model_spec(model), list[tuple[str, ...]]()
    for name, module in algorithms.KIND.modules().items():
        kind, config = module.Algorithm, module.Config()
        if missing := {*config.keep, *config.share} - set(spec.parts):
            rows.append((name, f"has no {', '.join(sorted(missing))}", "-", "-", "-"))
            continue
        layout = layout_of(network, spec, config, LocalConfig())
        size = layout.table_of("shared").size
        down, up = (4e-6 * size * len(vectors) for vectors in (kind.broadcast, kind.upload))
        share = f"{size / layout.table.size:.1%}"
        rows.append((name, f"{size:,}", share, f"{down:.2f}", f"{up:.2f}"))
    return rows
