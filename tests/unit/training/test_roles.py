"""Which parameters are trained and shared, by `local.train`, `algorithm.share` and `keep`."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from fedvsr import models
from fedvsr.algorithms import fedavg
from fedvsr.config import ExperimentConfig
from fedvsr.errors import UserError
from fedvsr.layout import Layout
from fedvsr.models import tiny
from fedvsr.training.config import LocalConfig
from fedvsr.training.requirements import model_spec
from fedvsr.training.roles import TRAFFIC_COLUMNS, layout_of, traffic_rows

MODEL = tiny.Config(channels=4, blocks=1)
HEAD = {"to_pixels.weight", "to_pixels.bias"}


def layout(
    train: tuple[str, ...] = (), network: nn.Module | None = None, **algorithm: Any
) -> Layout:
    return layout_of(
        network or models.build_fresh(MODEL),
        model_spec(MODEL),
        fedavg.Config(**algorithm),
        LocalConfig(train=train),
    )


def named(found: Layout, role: Any) -> set[str]:
    return set(found.table_of(role).names)


def test_everything_is_shared_by_default() -> None:
    assert layout().all_shared


def test_share_and_keep_are_two_ways_to_say_the_same() -> None:
    kept = layout(keep=("head",))
    assert named(kept, "own") == HEAD
    assert not named(kept, "frozen")
    assert kept == layout(share=("encoder",))


def test_what_is_not_trained_is_frozen_whatever_is_shared() -> None:
    frozen = layout(("head",))
    assert named(frozen, "shared") == HEAD
    assert not named(frozen, "own")
    network = models.build_fresh(MODEL)
    network.get_parameter("extract.bias").requires_grad_(False)
    part = layout(network=network, keep=("head",))
    assert named(part, "frozen") == {"extract.bias"}
    assert named(part, "own") == HEAD


def test_a_layout_that_shares_or_keeps_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"share = \[head\] leaves nothing of what local\.train"):
        layout(("encoder",), share=("head",))
    with pytest.raises(UserError, match=r"keep = \[head\] leaves nothing .* with a client"):
        layout(("encoder",), keep=("head",))
    network = models.build_fresh(MODEL).requires_grad_(False)
    with pytest.raises(UserError, match="no parameter of the network is trained"):
        layout(network=network)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"local": {"train": ["decodr"]}}, "did you mean 'decoder'"),
        ({"algorithm": {"name": "fedavg", "keep": ["norm"]}}, "tiny has not: it has encoder"),
        ({"algorithm": {"name": "fedavg", "keep": ["head"], "share": ["encoder"]}}, "give one"),
        ({"algorithm": {"name": "local", "keep": ["head"]}}, ""),
        (
            {"model": {"name": "rvrt", "size": "demo"}, "local": {"train": ["decoder"]}},
            "would keep optical flow as it is drawn",
        ),
    ],
)
def test_a_part_that_cannot_be_is_one_line(
    small: ExperimentConfig, change: dict[str, Any], message: str
) -> None:
    if not message:
        settings = ExperimentConfig.model_validate(small.model_dump() | change)
        assert [unused.key for unused in settings.without_effect()] == ["algorithm.keep"]
        return
    sections = {"local": small.local.model_dump() | change.get("local", {})}
    if "model" in change:
        sections["local"] = change["local"]
    with pytest.raises((UserError, ValueError), match=message):
        ExperimentConfig.model_validate(small.model_dump() | change | sections)


def test_traffic_of_a_round_by_algorithm() -> None:
    rows = {row[0]: dict(zip(TRAFFIC_COLUMNS, row, strict=True)) for row in traffic_rows(MODEL)}
    total = sum(p.numel() for p in models.build_fresh(MODEL).parameters())
    head = sum(p.numel() for n, p in models.build_fresh(MODEL).named_parameters() if n in HEAD)
    assert rows["scaffold"]["up, MB"] == f"{2 * 4e-6 * total:.2f}"
    assert rows["fedper"]["shared parameters"] == f"{total - head:,}"
    assert rows["local"]["up, MB"] == "0.00"
    assert rows["fedbn"]["shared parameters"] == "has no norm"


def test_a_network_is_named_with_its_size() -> None:
    assert models.named("vrt", "demo").size == "demo"
    assert models.named("vrt").size == "paper"
    with pytest.raises(UserError, match=r"vrt has no size 'huge'; there are: paper"):
        models.named("vrt", "huge")
