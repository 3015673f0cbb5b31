"""SpyNet and warping, against golden vectors and by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fedvsr.errors import UserError
from fedvsr.models import _flow
from fedvsr.models._flow import SpyNet, compose, flow_warp, load_flow_weights
from tests.golden import recipe


@pytest.mark.parametrize(
    ("mode", "padding"), [("bilinear", "zeros"), ("bilinear", "border"), ("nearest4", "zeros")]
)
def test_flow_warp_golden(mode, padding):
    case = recipe.load("modules", f"flow_warp_{mode}_{padding}")
    inputs = {name: case.tensor(f"in_{name}").requires_grad_() for name in ("x", "flow")}
    out = flow_warp(inputs["x"], inputs["flow"].permute(0, 3, 1, 2), mode, padding)
    if mode == "nearest4":
        inputs.pop("flow")
    recipe.check_module(case, nn.Module(), [out], inputs)


def test_nearest4_gives_the_flow_no_gradient():
    flow = torch.rand(1, 2, 5, 6, requires_grad=True)
    out = flow_warp(torch.rand(1, 3, 5, 6), flow, "nearest4")
    assert not out.requires_grad


def test_nearest4_at_whole_coordinates_doubles_the_pixel():
    x = torch.arange(12.0).view(1, 1, 3, 4)
    flow = torch.zeros(1, 2, 3, 4)
    flow[:, 0] = 1
    moved = torch.tensor([[1.0, 2, 3, 0], [5, 6, 7, 0], [9, 10, 11, 0]])
    assert torch.equal(flow_warp(x, flow, "nearest4"), moved.expand(1, 4, 3, 4))


def test_flow_warp_keeps_positions_exact_in_half_precision():
    # Near column 3000 neighbouring half precision numbers are 2 or 16 apart.
    x = (torch.arange(3000) % 7).expand(1, 1, 1, 3000)
    flow = torch.ones(1, 2, 1, 3000) * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    for dtype in (torch.float16, torch.bfloat16):
        out = flow_warp(x.to(dtype), flow)
        assert out.dtype == dtype
        assert (out[..., :-1] - x[..., 1:]).abs().max() < 0.01


def test_compose_adds_flows_where_the_first_leads():
    first = torch.zeros(1, 2, 4, 6)
    first[:, 0] = 1.0  # one to the right
    second = torch.arange(6.0).expand(1, 2, 4, 6)  # as large as its column
    got = compose(first, second)
    assert torch.allclose(got[0, 0, 0, :5], 2.0 + torch.arange(5.0), atol=1e-5)
    assert got[0, 0, 0, 5] == 1.0  # has left the image at b


@pytest.mark.parametrize("name", ["spynet_levels2345", "spynet_iart"])
def test_spynet_golden(name):
    case = recipe.load("modules", name)
    spynet = SpyNet(**case.meta["config"])
    recipe.fill(spynet)
    inputs = {name: case.tensor(f"in_{name}").requires_grad_() for name in ("ref", "supp")}
    recipe.check_module(case, spynet, spynet(*inputs.values()), inputs)


@pytest.fixture(scope="module")
def spynet() -> SpyNet:
    torch.manual_seed(0)
    spynet = SpyNet((5, 3))
    recipe.fill(spynet)
    return spynet


@pytest.mark.parametrize("chunk", [1, 2**21])
def test_both_ways_equals_pair_by_pair(spynet, monkeypatch, chunk):
    clip = torch.rand(2, 3, 3, 34, 40)
    monkeypatch.setattr(_flow, "_CHUNK_PIXELS", chunk)
    with torch.no_grad():
        backward, forward = spynet.both_ways(clip)
        for b, t in ((0, 0), (1, 1)):
            here, there = clip[b, t][None], clip[b, t + 1][None]
            for flows, want in ((backward, spynet(here, there)), (forward, spynet(there, here))):
                for flow, level in zip(flows, want, strict=True):
                    assert torch.allclose(flow[b, t], level[0], atol=1e-4)


def test_spynet_computes_in_float32_under_autocast(spynet):
    ref, supp = torch.rand(2, 1, 3, 34, 40)
    with torch.no_grad():
        want = spynet(ref, supp)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = spynet(ref, supp)
    for flow, level in zip(got, want, strict=True):
        assert flow.dtype == torch.float32
        assert torch.equal(flow, level)


def _released(spynet: SpyNet) -> dict[str, Tensor]:
    return {k: v for k, v in spynet.state_dict().items() if k not in ("mean", "std")}


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spynet = SpyNet()


@pytest.mark.parametrize("wrap", [True, False])
def test_load_flow_weights(spynet, tmp_path, wrap):
    tensors = _released(spynet)
    assert len(tensors) == 60
    torch.save({"params": tensors} if wrap else tensors, tmp_path / "spynet.pth")
    network = _Network()
    load_flow_weights(network, tmp_path / "spynet.pth")
    loaded = network.spynet.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in spynet.state_dict().items())


def test_flow_weights_load_under_both_forms_of_names(spynet, tmp_path):
    torch.save(_released(spynet), tmp_path / "twos.pth")
    wrapped = SpyNet((5, 3), wrapped=True)
    load_flow_weights(wrapped, tmp_path / "twos.pth")
    assert "basic_module.5.basic_module.4.conv.bias" in wrapped.state_dict()
    torch.save(_released(wrapped), tmp_path / "wrapped.pth")
    again = SpyNet()
    load_flow_weights(again, tmp_path / "wrapped.pth")
    assert all(torch.equal(again.state_dict()[name], v) for name, v in spynet.state_dict().items())


def _drop(tensors: dict[str, Tensor]) -> None:
    del tensors["basic_module.3.basic_module.4.bias"]


def _cut(tensors: dict[str, Tensor]) -> None:
    tensors["basic_module.0.basic_module.0.weight"] = torch.zeros(32, 8, 3, 3)


def _add(tensors: dict[str, Tensor]) -> None:
    tensors["head"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_drop, "lacks the tensor basic_module.3.basic_module.4.bias"),
        (_cut, r"has basic_module.0.basic_module.0.weight as \[32, 8, 3, 3\], not"),
        (_add, r"holds head \[1\], which the network lacks"),
    ],
)
def test_load_flow_weights_names_the_wrong_tensor(spynet, tmp_path, spoil, message):
    tensors = _released(spynet)
    spoil(tensors)
    torch.save(tensors, tmp_path / "spynet.pth")
    network = SpyNet()
    before = network.basic_module[0].basic_module[0].weight.clone()
    with pytest.raises(UserError, match=message):
        load_flow_weights(network, tmp_path / "spynet.pth")
    assert torch.equal(network.basic_module[0].basic_module[0].weight, before)


def test_load_flow_weights_refuses_files_without_a_table_of_tensors(tmp_path):
    path = tmp_path / "file.pth"
    with pytest.raises(UserError, match=r"cannot read .*file\.pth"):
        load_flow_weights(SpyNet(), path)
    path.write_text("not a checkpoint")
    with pytest.raises(UserError, match=r"cannot read .*file\.pth"):
        load_flow_weights(SpyNet(), path)
    torch.save({"params": Path("/")}, path)  # needs code to unpickle
    with pytest.raises(UserError, match=r"cannot read .*file\.pth"):
        load_flow_weights(SpyNet(), path)
    torch.save(torch.zeros(1), path)
    with pytest.raises(UserError, match="no table of tensors"):
        load_flow_weights(SpyNet(), path)
    with pytest.raises(UserError, match="Linear estimates no flow"):
        load_flow_weights(nn.Linear(1, 1), path)
