"""BasicVSR++ against golden vectors, and under changes that must keep its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fedvsr import models
from fedvsr.errors import UserError
from fedvsr.models import _deform, _frames, basicvsrpp
from fedvsr.models.basicvsrpp import network as basicvsrpp_network
from fedvsr.models.basicvsrpp.layers import Alignment
from tests.golden import recipe
from tests.unit.models.checks import (
    check_autocast,
    check_clips_do_not_mix,
    check_equal_gradients,
    gradients,
    kept_bytes,
)

SMALL = {"mid_channels": 8, "num_blocks": 1}


def small(**settings) -> nn.Module:
    network = models.build("basicvsrpp", **SMALL, **settings)
    recipe.fill(network)
    return network


def clips(frames: int = 4, batch: int = 1) -> Tensor:
    return torch.rand(batch, frames, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_defaults_are_the_paper():
    paper = recipe.load("models", "basicvsrpp_full").meta["config"]
    assert basicvsrpp.Config(**paper) == basicvsrpp.Config()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("basicvsrpp_tiny1", marks=pytest.mark.full),
        "basicvsrpp_tiny2",
        pytest.param("basicvsrpp_full", marks=pytest.mark.slow),
    ],
)
def test_network_golden(name):
    case = recipe.load("models", name)
    network = models.build("basicvsrpp", **case.meta["config"])
    # Border instead of zero padding in the warps of features would move the output by 1.5e-5.
    # In the small networks a few flow gradients nearly cancel: the published implementation's own
    # rounding moves their norms by up to 1.7e-3.
    most = None if name == "basicvsrpp_full" else 3e-3
    recipe.check_network(case, network, output=5e-6, most=most)


def test_alignment_golden():
    case = recipe.load("modules", "sodalign_basicvsrpp")
    asked = case.meta["config"]
    config = basicvsrpp.Config(
        mid_channels=asked["args"][1], max_residue_magnitude=asked["max_residue_magnitude"]
    )
    module = Alignment(config)
    recipe.fill(module)
    names = ("x", "extra_feat", "flow_1", "flow_2")
    x, around, *flows = inputs = [case.tensor(f"in_{name}").requires_grad_() for name in names]
    newer, now, older = around.chunk(3, dim=1)
    out = module(
        torch.unflatten(x, 1, (2, -1)),
        torch.stack((newer, older), dim=1),
        torch.stack(flows, dim=1),
        module.enter(now, torch.cat(flows, dim=1)),
    )
    recipe.check_module(case, module, [out], dict(zip(names, inputs, strict=True)))


def test_a_missing_older_state_counts_as_zero():
    module = Alignment(basicvsrpp.Config(mid_channels=8))
    recipe.fill(module)
    memory, flow = torch.rand(1, 2, 8, 9, 7), torch.rand(1, 2, 2, 9, 7)
    memory[:, 1] = flow[:, 1] = 0
    head = torch.rand(1, 8, 9, 7)
    with torch.no_grad():
        both = module(memory, memory, flow, head)
        newer = module(memory[:, :1], memory[:, :1], flow[:, :1], head)
    assert torch.allclose(newer, both, atol=1e-6)


@pytest.mark.parametrize("mode", ["attention", "blocks"])
def test_checkpointing_changes_no_gradient(mode):
    lq = clips()
    sr, want = gradients(small(checkpointing="none"), lq)
    got_sr, got = gradients(small(checkpointing=mode), lq)
    assert torch.equal(got_sr, sr)
    check_equal_gradients(got, want, rtol=1e-4, atol=1e-7)


def test_checkpointing_keeps_less():
    modes = ("none", "attention", "blocks")
    kept = {mode: kept_bytes(small(checkpointing=mode), clips(3)) for mode in modes}
    assert kept["blocks"] < kept["attention"] < kept["none"]


def test_chunks_change_no_number(monkeypatch):
    lq = clips(3, batch=2)
    sr, want = gradients(small(), lq)
    monkeypatch.setattr(_deform, "_CHUNK_SAMPLES", 9 * 8 * 32 * 10)
    monkeypatch.setattr(_frames, "_CHUNK_PIXELS", 4 * 32 * 32)
    got_sr, got = gradients(small(), lq)
    assert torch.allclose(got_sr, sr, atol=1e-6)
    check_equal_gradients(got, want, rtol=1e-3, atol=1e-6)


def test_clips_of_a_batch_do_not_mix():
    check_clips_do_not_mix(small(), clips(3, batch=2), atol=1e-6)


def test_long_clips_in_host_memory_give_the_same():
    with torch.no_grad():
        assert torch.equal(small(cpu_cache_length=2)(clips()), small()(clips()))


@pytest.mark.parametrize("frames", [1, 2])
def test_few_frames_need_no_second_order(frames):
    with torch.no_grad():
        assert small()(clips(frames)).shape == (1, frames, 3, 128, 128)


def test_every_frame_reaches_every_other():
    lq = clips(5)
    for changed, seen in ((0, 4), (4, 0)):
        other = lq.clone()
        other[:, changed] = 0
        with torch.no_grad():
            difference = (small()(lq) - small()(other))[:, seen].abs().max()
        assert difference > 1e-6


def test_trains_under_autocast():
    check_autocast(small(), small(checkpointing="none"), clips(3))


def _of_basicsr(name: str) -> str:
    for i in range(5):
        name = name.replace(f".{i}.conv.", f".{2 * i}.")
    return name.replace("upsample1.upsample_conv", "upconv1").replace(
        "upsample2.upsample_conv", "upconv2"
    )


@pytest.mark.parametrize(
    "form", ["generator", "module", "bare, with its trainer's counter", "basicsr"]
)
def test_released_files_fit(form, tmp_path: Path):
    state = small(size="demo").state_dict()
    counter = {"step_counter": torch.zeros(1)}
    file: dict[str, object]
    if form == "generator":
        state_in_file = {f"generator.{name}": value for name, value in state.items()} | counter
        file = {"meta": {}, "state_dict": state_in_file}
    elif form == "module":
        state_in_file = {f"generator.{name}": value for name, value in state.items()} | counter
        wrapped = {f"module.{name}": value for name, value in state_in_file.items()}
        file = {"meta": {}, "state_dict": wrapped}
    elif form == "basicsr":
        file = {"params": {_of_basicsr(name): value for name, value in state.items()}}
    else:
        file = {**state, **counter}
    torch.save(file, tmp_path / "net.pth")
    config = basicvsrpp.Config(size="demo", **SMALL)
    loaded = models.load_checkpoint(tmp_path / "net.pth", config)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in state.items())


def test_another_network_is_refused(tmp_path: Path):
    state = small(size="demo").state_dict()
    config = basicvsrpp.Config(size="demo", **SMALL)
    # The variants for inputs and outputs of one size.
    other = {n.replace("feat_extract.", "feat_extract.2."): v for n, v in state.items()}
    torch.save({"state_dict": other}, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"lacks the tensor feat_extract\.main\.0\.weight"):
        models.load_checkpoint(tmp_path / "net.pth", config)
    twice = state | {"upconv1.bias": state["upsample1.upsample_conv.bias"]}
    torch.save(twice, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"holds upsample1\.upsample_conv\.bias twice"):
        models.load_checkpoint(tmp_path / "net.pth", config)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 3, 31, 40), "at least 32 x 32 pixels, in multiples of 1, not 31 x 40"),
        ((1, 4, 1, 40, 40), r"takes \(B, T, 3, H, W\), not"),
    ],
)
def test_refuses_sizes_it_cannot_take(shape, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(shape))


@pytest.mark.parametrize(
    "settings",
    [{"mid_channels": 20}, {"num_blocks": -1}, {"num_blocks": 65}, {"is_low_res_input": False}],
)
def test_refuses_settings_that_do_not_fit(settings):
    with pytest.raises(ValidationError):
        basicvsrpp.Config(**settings)


def test_flows_of_two_steps_are_composed():
    flow = torch.ones(1, 2, 2, 4, 6)
    guides = basicvsrpp_network._guides(flow)
    assert guides.shape == (1, 2, 4, 4, 6)
    assert not guides[:, 0, 2:].any()
    assert torch.allclose(guides[0, 1, 2:, 0, 0], torch.tensor([2.0, 2.0]))
    assert torch.equal(guides[0, 1, 2:, -1, -1], torch.tensor([1.0, 1.0]))
