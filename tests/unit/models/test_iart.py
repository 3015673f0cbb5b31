"""IART against golden vectors, and under changes that must keep its numbers."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from fedvsr import models
from fedvsr.models import iart
from fedvsr.models._windows import WindowAttention
from fedvsr.models.iart import network as iart_network
from tests.golden import recipe
from tests.unit.models.checks import (
    check_autocast,
    check_clips_do_not_mix,
    check_equal_gradients,
    gradients,
)

# Parameters of convolutions that exist only in checkpoints: three in each of four cells.
UNUSED = 4 * 3 * 2
SMALL = {"mid_channels": 8, "embed_dim": 12, "depths": (2,), "num_heads": (2,)}


def small(**settings) -> nn.Module:
    network = models.build("iart", **SMALL, **settings)
    recipe.fill(network)
    return network


def test_state_is_the_published_one():
    network = models.build("iart")
    assert recipe.state_of(network) == recipe.manifest("iart")
    assert sum(p.numel() for p in network.parameters()) == 13_410_503


def test_defaults_are_the_paper():
    paper = recipe.load("models", "iart_full").meta["config"]
    assert iart.Config(**paper) == iart.Config()


@pytest.mark.parametrize(
    "name", ["iart_tiny1", "iart_tiny2", pytest.param("iart_full", marks=pytest.mark.slow)]
)
def test_network_golden(name):
    case = recipe.load("models", name)
    recipe.check_network(case, models.build("iart", **case.meta["config"]))


def test_implicit_alignment_golden():
    case = recipe.load("modules", "implicit_iart")
    module = iart_network.ImplicitAlignment(
        case.meta["config"]["dim"], case.meta["config"]["num_heads"]
    )
    recipe.fill(module)
    inputs = {name: case.tensor(f"in_{name}").requires_grad_() for name in ("y", "x", "flow")}
    y, x = (inputs[name].permute(0, 2, 3, 1) for name in ("y", "x"))
    out = module(module.project(y), x, inputs["flow"].permute(0, 3, 1, 2))
    recipe.check_module(case, module, [out.permute(0, 3, 1, 2)], inputs)


def test_cell_golden():
    case = recipe.load("modules", "swinirfm_iart")
    keys = ("embed_dim", "depths", "num_heads", "window_size")
    module = iart_network._Cell(iart.Config(**{key: case.meta["config"][key] for key in keys}))
    recipe.fill(module)
    x = case.tensor("in_x").requires_grad_()
    out = module(x.permute(0, 1, 3, 4, 2)).permute(0, 3, 1, 2)
    recipe.check_module(case, module, [out], {"x": x})


def test_window_attention_golden():
    case = recipe.load("modules", "winattn_iart")
    asked = case.meta["config"]
    module = WindowAttention(asked["dim"], tuple(asked["window_size"]), asked["num_heads"])
    recipe.fill(module)
    x, masks = case.tensor("in_x").requires_grad_(), case.tensor("in_mask")
    windows = torch.unflatten(x, 0, (-1, len(masks)))
    outs = [
        module(windows[:, i, None, None], mask.expand(4, -1, -1))[:, 0, 0]
        for i, mask in enumerate(masks)
    ]
    recipe.check_module(case, module, [torch.stack(outs, 1).flatten(0, 1)], {"x": x})


@pytest.mark.parametrize("mode", ["attention", "blocks"])
def test_checkpointing_changes_no_gradient(mode):
    lq = torch.rand(1, 3, 3, 64, 66, generator=torch.Generator().manual_seed(1))
    settings = {"drop_path_rate": 0.5}
    results = []
    for checkpointing in ("none", mode):
        network = small(checkpointing=checkpointing, **settings).train()
        torch.manual_seed(5)
        results.append(gradients(network, lq))
    (sr, want), (got_sr, got) = results
    assert torch.equal(got_sr, sr)
    check_equal_gradients(got, want, rtol=1e-4, atol=1e-7, unused=UNUSED)


def test_drop_path_acts_in_training_alone():
    lq = torch.rand(1, 2, 3, 64, 64)
    network, plain = small(drop_path_rate=0.9), small()
    with torch.no_grad():
        assert torch.equal(network(lq), plain(lq))
        assert not torch.equal(network.train()(lq), plain(lq))


def test_only_the_idle_convolutions_get_no_gradient():
    network = small()
    gradients(network, torch.rand(1, 3, 3, 64, 64))
    idle = {name for name, p in network.named_parameters() if p.grad is None}
    assert idle == {
        f"swin_backbone.{branch}_{i}.{conv}.{kind}"
        for branch in ("backward", "forward")
        for i in (1, 2)
        for conv in ("conv_first", "conv_first_feat", "conv_before_upsample")
        for kind in ("weight", "bias")
    }


def test_clips_of_a_batch_do_not_mix():
    check_clips_do_not_mix(small(), torch.rand(2, 4, 3, 64, 65), atol=1e-5)


def test_long_clips_in_host_memory_give_the_same():
    lq = torch.rand(1, 3, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(small(cpu_cache_length=2)(lq), small()(lq))


def test_a_single_frame_needs_no_flow():
    with torch.no_grad():
        assert small()(torch.rand(1, 1, 3, 65, 71)).shape == (1, 1, 3, 260, 284)


@pytest.mark.parametrize("checkpointing", ["none", "blocks"])
def test_trains_under_autocast(checkpointing):
    lq = torch.rand(1, 3, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    check_autocast(small(checkpointing=checkpointing), small(), lq, unused=UNUSED)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 3, 31, 64), "at least 32 x 32 pixels, in multiples of 1, not 31 x 64"),
        ((1, 3, 1, 64, 64), r"takes \(B, T, 3, H, W\), not"),
        ((3, 3, 64, 64), r"takes \(B, T, 3, H, W\), not"),
    ],
)
def test_refuses_sizes_it_cannot_take(shape, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(shape))


def test_spec():
    rules = iart.spec(iart.Config())
    assert (rules.scale, rules.min_frames, rules.frames_multiple) == (4, 1, 1)
    assert (rules.min_size, rules.size_multiple, rules.charbonnier_eps) == (32, 1, 1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        {"depths": (6, 6)},
        {"depths": (6, 0, 6)},
        {"num_heads": (6, 7, 6)},
        {"window_size": (3, 1, 8)},
        {"window_size": (2, 8, 8)},
        {"embed_dim": 122},
    ],
)
def test_refuses_settings_that_do_not_fit(settings):
    with pytest.raises(ValidationError):
        iart.Config(**settings)
