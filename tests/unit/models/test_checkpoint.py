"""Weights from files, and the packaged configurations by which bare files are identified."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from fedvsr import models
from fedvsr.determinism import scoped_torch
from fedvsr.errors import UserError
from fedvsr.lookup import names
from fedvsr.models import rvrt, tiny, vrt
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


WRAPPERS = [None, "params", "params_ema", "state_dict", "model_state_dict", "generator", "net_g"]
PREFIXES = ["", "module.", "_orig_mod.", "generator.", "generator_ema.", "model.", "module.model."]


@pytest.mark.parametrize(
    ("wrapper", "prefix"),
    [
        *((wrapper, "module.") for wrapper in WRAPPERS),
        *(("params", p) for p in PREFIXES),
        (None, ""),
    ],
)
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


def test_of_a_trainer_with_an_adversary_the_network_is_taken(
    tmp_path: Path, network: nn.Module
) -> None:
    state = network.state_dict()
    raw = {f"generator.{name}": torch.zeros_like(value) for name, value in state.items()}
    averaged = {f"generator_ema.{name}": value for name, value in state.items()}
    rest = {"step_counter": torch.zeros(1), "discriminator.conv.weight": torch.zeros(3)}
    path = saved(tmp_path / "net.pth", {"state_dict": {**rest, **raw, **averaged}, "meta": {}})
    assert same(models.load_checkpoint(path), network)
    save_file(averaged | rest, tmp_path / "net.safetensors")
    assert same(models.load_checkpoint(tmp_path / "net.safetensors"), network)


def test_a_damaged_network_is_refused(tmp_path: Path) -> None:
    config = tiny.Config(channels=4, blocks=0)
    path = tmp_path / "model.safetensors"
    save_model(path, models.build_fresh(config), config)
    whole = path.read_bytes()
    for position in range(0, len(whole), 17):
        data = bytearray(whole)
        data[position] ^= 1 << position % 8
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"model\.safetensors"):
            models.load_checkpoint(path)


def file_of(path: Path, metadata: object) -> Path:
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    save_file({"a": torch.zeros(1)}, path, {"fedvsr": text})
    return path


LARGE = {"depths": [100_000] * 3, "num_heads": [6] * 3}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "its header is not valid"),
        ("[1]", "has metadata of fedvsr that is no table"),
        ({"model": 7}, "has a network's settings that are no table: 7"),
        ({"model": {"nam": "tiny"}}, "has settings of a network that are refused: 'None' is no"),
        ({"model": {"name": "../x"}}, "has settings of a network that are refused"),
        ({"model": {"name": "tiny", "chanels": 3}}, "are refused: chanels is not a setting"),
        ({"model": {"name": "tiny", "channels": 10**9}}, "are refused: channels: Input should be"),
        ({"model": {"name": "iart", **LARGE}}, "are refused: .*300000 attention layers are too m"),
        ({"model": {"name": "rvrt", "embed_dims": [50_400] * 3}}, "50400 channels are too many"),
        ({"model": {"name": "rvrt", "num_heads": [0, 6, 6]}}, "are at least 1"),
        ({"model": {"name": "vrt", "window_size": [4096, 64, 64]}}, "16777216 positions is too la"),
        ({"model": {"name": "iart"}}, "lacks the tensor"),
        ({"round_idx": 3}, "is a part of an unfinished run; give the run's folder"),
    ],
)
def test_a_file_that_asks_for_too_much_is_refused(
    tmp_path: Path, metadata: object, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        models.load_checkpoint(file_of(tmp_path / "f.safetensors", metadata))


def test_a_small_file_takes_no_memory_for_a_large_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: object) -> None:
        raise AssertionError("built before its tensors were compared")

    models._state_of.cache_clear()
    models._state_of(vrt.Config())
    monkeypatch.setattr(models, "build_fresh", never)
    with pytest.raises(UserError, match="lacks the tensor"):
        models.load_checkpoint(file_of(tmp_path / "f.safetensors", {"model": {"name": "vrt"}}))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("basicvsrpp", {"mid_channels": 520}),
        ("iart", {"embed_dim": 1024, "depths": (64,), "num_heads": (1,)}),
        ("iart", {"depths": (1,) * 65, "num_heads": (6,) * 65}),
        ("iart", {"window_size": (3, 64, 64)}),
        ("iart", {"img_size": 10**9}),
        ("rvrt", {"num_blocks": (1, 200, 1)}),
        ("rvrt", {"window_size": (2, 32, 32), "depths": (8, 8, 8)}),
        ("rvrt", {"img_size": (2, 10**9, 64)}),
        ("rvrt", {"max_residue_magnitude": 1e30}),
        ("vrt", {"depths": (41,) * 13}),
        ("vrt", {"embed_dims": (1200,) * 13}),
        ("vrt", {"window_size": (16, 16, 17)}),
        ("vrt", {"indep_reconsts": (11,) * 41}),
        ("tiny", {"blocks": 10**6}),
    ],
)
def test_sizes_of_networks_are_bounded(name: str, settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        models._section(name, settings)


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
    for name in ("text.pth", "text.safetensors", "prose.pth"):
        # A pickle's opcodes are letters, so text may be read for a while.
        text = "no checkpoint" if name.startswith("text") else "The quick brown fox.\n" * 99
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=rf"cannot read .*{name}: (it )?is (no|damaged)"):
            models.load_checkpoint(tmp_path / name)
    with pytest.raises(UserError, match="weights is a int, not a tensor"):
        models.load_checkpoint(saved(tmp_path / "n.pth", {"weights": 3}))
    with pytest.raises(UserError, match=r"is not a checkpoint of a known network \(basicvsrpp, ia"):
        models.load_checkpoint(saved(tmp_path / "n.pth", {"fc.weight": torch.zeros(2)}))
    twice = {"conv.weight": torch.zeros(2), 1: torch.zeros(2), "1": torch.zeros(2)}
    with pytest.raises(UserError, match="names a tensor twice"):
        models.load_checkpoint(saved(tmp_path / "n.pth", twice))
    # Needs code to unpickle, which is never run.
    with pytest.raises(UserError, match="cannot read"):
        models.load_checkpoint(saved(tmp_path / "n.pth", {"params": Path("/")}))


PUBLISHED = {
    ("vrt", "paper"): "vrt",
    ("vrt", "paper_6frames"): "vrt_6frames",
    ("vrt", "released_16frames"): "vrt_released_16frames",
    ("rvrt", "paper"): "rvrt",
    ("iart", "paper"): "iart",
    ("basicvsrpp", "paper"): "basicvsrpp",
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
