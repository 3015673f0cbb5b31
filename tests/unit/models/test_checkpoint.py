"""Weights from files, and the packaged configurations by which bare files are identified."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fedvsr import models
from fedvsr.determinism import scoped_torch
from fedvsr.errors import UserError
from fedvsr.lookup import names
from fedvsr.models import rvrt
from fedvsr.models.rvrt.network import Model
from fedvsr.training.checkpoint import save_model
from tests.golden import recipe


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return models.build("rvrt", size="demo")


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("wrapper", [None, "params", "params_ema", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_and_prefix(
    tmp_path: Path, network: nn.Module, wrapper: str | None, prefix: str
) -> None:
    state: dict[str, object] = {prefix + k: v for k, v in network.state_dict().items()}
    path = saved(tmp_path / "net.pth", {wrapper: state, "iter": 5} if wrapper else state)
    loaded = models.load_checkpoint(path)
    assert type(loaded) is Model
    assert not loaded.training
    assert same(loaded, network)


def test_averaged_weights_are_preferred(tmp_path: Path, network: nn.Module) -> None:
    state = network.state_dict()
    raw = {name: torch.zeros_like(value) for name, value in state.items()}
    path = saved(tmp_path / "net.pth", {"params": raw, "params_ema": state})
    assert same(models.load_checkpoint(path), network)


def test_a_runs_network_brings_its_configuration(tmp_path: Path) -> None:
    config = rvrt.Config(size="demo", embed_dims=(36, 36, 36), deformable_groups=6)
    own = models.build_fresh(config)
    save_model(tmp_path / "model.safetensors", own, config)
    assert same(models.load_checkpoint(tmp_path / "model.safetensors"), own)
    bare = saved(tmp_path / "bare.pth", own.state_dict())
    assert same(models.load_checkpoint(bare, config), own)
    with pytest.raises(
        UserError, match=r"bare\.pth fits no packaged network: compared with the nearest, rv"
    ):
        models.load_checkpoint(bare)


def _lose(state: dict[str, Tensor]) -> None:
    del state["conv_last.bias"]


def _cut(state: dict[str, Tensor]) -> None:
    state["conv_last.bias"] = torch.zeros(4)


def _add(state: dict[str, Tensor]) -> None:
    state["head"] = torch.zeros(2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_lose, r"nearest, rvrt \(demo\), it lacks the tensor conv_last\.bias \[3\]$"),
        (_cut, r"nearest, rvrt \(demo\), it has conv_last\.bias as \[4\], not \[3\]$"),
        (_add, r"nearest, rvrt \(demo\), it holds head \[2\], which the network lacks$"),
    ],
)
def test_the_wrong_tensor_is_named(
    tmp_path: Path, network: nn.Module, spoil: object, message: str
) -> None:
    state = dict(network.state_dict())
    assert callable(spoil)
    spoil(state)
    path = saved(tmp_path / "net.pth", state)
    with pytest.raises(UserError, match=message):
        models.load_checkpoint(path)
    with pytest.raises(UserError, match=message.partition("it ")[2]):
        models.load_checkpoint(path, rvrt.Config(size="demo"))


def test_refuses_files_that_are_not_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.pth: No such file"):
        models.load_checkpoint(tmp_path / "none.pth")
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("no checkpoint")
        with pytest.raises(UserError, match=f"cannot read .*{name}"):
            models.load_checkpoint(tmp_path / name)
    with pytest.raises(UserError, match="weights is a int, not a tensor"):
        models.load_checkpoint(saved(tmp_path / "n.pth", {"weights": 3}))
    with pytest.raises(UserError, match=r"is not a checkpoint of a known network \(iart, rvrt"):
        models.load_checkpoint(saved(tmp_path / "n.pth", {"fc.weight": torch.zeros(2)}))
    # Needs code to unpickle, which is never run.
    with pytest.raises(UserError, match="cannot read"):
        models.load_checkpoint(saved(tmp_path / "n.pth", {"params": Path("/")}))


PUBLISHED = {
    ("vrt", "paper"): "vrt",
    ("vrt", "paper_6frames"): "vrt_6frames",
    ("vrt", "released_16frames"): "vrt_released_16frames",
    ("rvrt", "paper"): "rvrt",
    ("iart", "paper"): "iart",
}


@pytest.mark.parametrize(("choice", "manifest"), PUBLISHED.items())
def test_packaged_sizes_have_the_published_states(choice: tuple[str, str], manifest: str) -> None:
    name, size = choice
    with torch.device("meta"):
        network = models.build(name, size=size)
    assert recipe.state_of(network) == recipe.manifest(manifest)


def test_packaged_sizes_differ_in_their_tensors() -> None:
    states = []
    for name in names("fedvsr.models"):
        for config in models.packaged(name):
            with torch.device("meta"):
                state = models.build_fresh(config).state_dict()
            states.append({key: value.shape for key, value in state.items()})
    assert len(states) > len(PUBLISHED)
    assert all(a != b for i, a in enumerate(states) for b in states[:i])


def test_weights_to_start_from(tmp_path: Path, network: nn.Module) -> None:
    path = saved(tmp_path / "net.pth", network.state_dict())
    assert same(models.build("rvrt", size="demo", weights=str(path)), network)
    with pytest.raises(UserError, match=r"has feat_extract\.main\.1\.weight as"):
        models.build("rvrt", size="paper", weights=str(path))


def test_flow_weights_change_the_flow_alone(tmp_path: Path, network: nn.Module) -> None:
    flow = network.get_submodule("spynet")
    recipe.fill(flow)
    path = saved(tmp_path / "spynet.pth", {"params": dict(flow.named_parameters())})
    with scoped_torch(1, 1):
        plain = models.build("rvrt", size="demo")
    with scoped_torch(1, 1):
        loaded = models.build("rvrt", size="demo", flow_weights=str(path))
    for name, value in plain.state_dict().items():
        changed = name.startswith("spynet.basic_module")
        assert torch.equal(value, loaded.state_dict()[name]) != changed, name
    assert models.flow_from_scratch(rvrt.Config())
    assert not models.flow_from_scratch(rvrt.Config(flow_weights="x"))
    assert not models.flow_from_scratch(rvrt.Config(weights="x"))
