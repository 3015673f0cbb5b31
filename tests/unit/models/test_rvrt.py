"""RVRT against golden vectors, and under changes that must keep its numbers."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fedvsr import models
from fedvsr.models import _frames, _windows, rvrt
from fedvsr.models._windows import WindowAttention
from fedvsr.models.rvrt import network as rvrt_network
from tests.golden import recipe
from tests.unit.models.checks import (
    check_autocast,
    check_clips_do_not_mix,
    check_equal_gradients,
    gradients,
    kept_bytes,
)

SMALL = {
    "num_blocks": (1, 1, 1),
    "embed_dims": (12, 12, 12),
    "num_heads": (2, 2, 2),
    "deformable_groups": 4,
    "attention_heads": 4,
}


def small(**settings) -> nn.Module:
    network = models.build("rvrt", **SMALL, **settings)
    recipe.fill(network)
    return network


def fold(x: Tensor) -> Tensor:
    return x.flatten(0, 1)


def test_state_is_the_published_one():
    network = models.build("rvrt")
    assert recipe.state_of(network) == recipe.manifest("rvrt")
    assert sum(p.numel() for p in network.parameters()) == 10_782_295


def test_defaults_are_the_paper():
    paper = recipe.load("models", "rvrt_full").meta["config"]
    assert rvrt.Config(**paper) == rvrt.Config()


@pytest.mark.parametrize(
    "name", ["rvrt_tiny1", "rvrt_tiny2", pytest.param("rvrt_full", marks=pytest.mark.slow)]
)
def test_network_golden(name):
    case = recipe.load("models", name)
    recipe.check_network(case, models.build("rvrt", **case.meta["config"]))


def test_guided_deformable_attention_golden():
    case = recipe.load("modules", "gda_rvrt_update1")
    asked = case.meta["config"]
    config = rvrt.Config(
        embed_dims=(asked["args"][0],) * 3,
        num_heads=(4, 4, 4),
        deformable_groups=asked["deformable_groups"],
        attention_heads=asked["attention_heads"],
    )
    module = rvrt_network.GuidedDeformableAttention(config)
    recipe.fill(module)
    names = ("q", "k", "v", "vw0", "vw1", "flow1", "flow2")
    inputs = {name: case.tensor(f"in_{name}").requires_grad_() for name in names}
    q, k, v, *rest = (fold(value) for value in inputs.values())
    warped, flows = torch.stack(rest[:2], dim=1), torch.stack(rest[2:], dim=1)
    aligned, refined = module(q, k, v, warped, flows)
    outputs = [torch.unflatten(x, 0, (-1, 2)) for x in (aligned, *refined.unbind(1))]
    recipe.check_module(case, module, outputs, inputs)


def test_stage_golden():
    case = recipe.load("modules", "rstb_rvrt")
    asked = case.meta["config"]
    config = rvrt.Config(embed_dims=(asked["dim"],) * 3, num_heads=(4, 4, 4), num_blocks=(1, 1, 1))
    module = rvrt_network._Stage(config, 1, asked["in_channels"], tuple(asked["window_size"]))
    recipe.fill(module)
    x = case.tensor("in_x").requires_grad_()
    # The input convolution in two parts, as the recurrence takes it.
    early, late = fold(x).chunk(2, dim=1)
    out = module(module.enter([early]) + module.enter([late], first=1))
    recipe.check_module(case, module, [torch.unflatten(out, 0, (1, 2))], {"x": x})


def test_window_attention_golden():
    case = recipe.load("modules", "winattn_rvrt")
    asked = case.meta["config"]
    module = WindowAttention(
        asked["dim"], tuple(asked["window_size"]), asked["num_heads"], "qkv_self"
    )
    recipe.fill(module)
    x, masks = case.tensor("in_x").requires_grad_(), case.tensor("in_mask")
    windows = torch.unflatten(x, 0, (-1, len(masks)))
    # A grid of one window knows one mask, the last: one call per mask of the case.
    outs = [
        module(windows[:, i, None, None], mask.expand(4, -1, -1))[:, 0, 0]
        for i, mask in enumerate(masks)
    ]
    recipe.check_module(case, module, [torch.stack(outs, 1).flatten(0, 1)], {"x": x})


@pytest.mark.parametrize("mode", ["attention", "blocks"])
def test_checkpointing_changes_no_gradient(mode):
    lq = torch.rand(1, 4, 3, 33, 35, generator=torch.Generator().manual_seed(1))
    sr, want = gradients(small(), lq)
    got_sr, got = gradients(small(checkpointing=mode), lq)
    assert torch.equal(got_sr, sr)
    check_equal_gradients(got, want, rtol=1e-4, atol=1e-7)


def test_checkpointing_keeps_less():
    lq = torch.rand(1, 2, 3, 33, 33)
    modes = ("none", "attention", "blocks")
    kept = {mode: kept_bytes(small(checkpointing=mode), lq) for mode in modes}
    assert kept["blocks"] < kept["attention"] < kept["none"]


def test_chunks_change_no_number(monkeypatch):
    lq = torch.rand(2, 4, 3, 33, 35, generator=torch.Generator().manual_seed(2))
    sr, want = gradients(small(), lq)
    monkeypatch.setattr(rvrt_network, "_CHUNK_SAMPLES", 20_000)
    monkeypatch.setattr(_frames, "_CHUNK_PIXELS", 3 * 33 * 35)
    monkeypatch.setattr(_windows, "_CHUNK_LOGITS", 1)
    got_sr, got = gradients(small(), lq)
    assert torch.allclose(got_sr, sr, atol=1e-5)
    check_equal_gradients(got, want, rtol=1e-3, atol=1e-6)


def test_samples_no_more_than_a_chunk(monkeypatch):
    taken = []
    grid_sample = torch.nn.functional.grid_sample

    def watch(*args, **kwargs):
        out = grid_sample(*args, **kwargs)
        taken.append(out.numel())
        return out

    monkeypatch.setattr(torch.nn.functional, "grid_sample", watch)
    monkeypatch.setattr(rvrt_network, "_CHUNK_SAMPLES", 50_000)
    q, k, v = torch.rand(3, 2, 24, 20, 24)
    offset = 10 * torch.randn(2, 2, 4, 9, 2, 20, 24)
    rvrt_network.guided_attention(q, k, v, offset, heads=4, taps=(3, 3))
    assert sum(taken) == 2 * (2 * 2 * 24 * 9 * 20 * 24)  # every key and value, once
    assert max(taken) <= 50_000


def test_clips_of_a_batch_do_not_mix():
    check_clips_do_not_mix(small(), torch.rand(2, 4, 3, 33, 35), atol=1e-5)


def test_long_clips_in_host_memory_give_the_same():
    lq = torch.rand(1, 6, 3, 33, 35)
    with torch.no_grad():
        assert torch.equal(small(cpu_cache_length=2)(lq), small()(lq))


def test_a_pair_of_frames_needs_no_alignment():
    with torch.no_grad():
        assert small()(torch.rand(1, 2, 3, 33, 35)).shape == (1, 2, 3, 132, 140)


@pytest.mark.parametrize("checkpointing", ["none", "blocks"])
def test_trains_under_autocast(checkpointing):
    lq = torch.rand(1, 4, 3, 33, 35, generator=torch.Generator().manual_seed(3))
    check_autocast(small(checkpointing=checkpointing), small(), lq)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 3, 40, 40), "at least 2 frames, in multiples of 2, not 3"),
        ((1, 4, 3, 31, 40), "at least 32 x 32 pixels, in multiples of 1, not 31 x 40"),
        ((1, 4, 1, 40, 40), r"takes \(B, T, 3, H, W\), not"),
        ((4, 3, 40, 40), r"takes \(B, T, 3, H, W\), not"),
    ],
)
def test_refuses_sizes_it_cannot_take(shape, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(shape))


def test_spec():
    rules = rvrt.spec(rvrt.Config())
    assert (rules.scale, rules.min_frames, rules.frames_multiple) == (4, 2, 2)
    assert (rules.min_size, rules.size_multiple, rules.charbonnier_eps) == (32, 1, 1e-9)


@pytest.mark.parametrize(
    "settings",
    [
        {"embed_dims": (24, 24, 12)},
        {"num_heads": (6, 5, 6)},
        {"attention_heads": 7},
        {"deformable_groups": 10},
        {"window_size": (4, 8, 8)},
        {"num_blocks": (1, 0, 1)},
        {"inputconv_groups": (1, 2, 1, 1, 1, 1)},
    ],
)
def test_refuses_settings_that_do_not_fit(settings):
    with pytest.raises(ValidationError):
        rvrt.Config(**settings)
