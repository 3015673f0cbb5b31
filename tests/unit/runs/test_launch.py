"""What a run needs before it starts: shared memory, and files of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedvsr import models
from fedvsr.config import load_config
from fedvsr.data.split import Split
from fedvsr.errors import UserError
from fedvsr.models._flow import SpyNet
from fedvsr.models.spec import RELEASED_FLOW
from fedvsr.params import ParamTable
from fedvsr.runs.launch import object_store_bytes, require_weights
from fedvsr.runs.notes import notes_of
from tests.golden import recipe


@pytest.mark.parametrize(
    ("settings", "num_vectors"),
    [
        # Parameters down, two sets to score, and an upload of each of the two clients.
        (["algorithm.name=fedavg"], 1 + 2 + 2 * 1),
        (["algorithm.name=fedavg", "federation.clients_per_round=4"], 1 + 2 + 4 * 1),
        # Down and up also go control variates, and a client remembers its own.
        (["algorithm.name=scaffold"], 2 + 2 + 2 * 3),
        # Compression: a client remembers what it left out.
        (["algorithm.name=fedavg", "update.compression=int8"], 1 + 2 + 2 * 2),
    ],
)
def test_shared_memory_is_reserved_for_every_vector_of_a_round(
    settings: list[str], num_vectors: int, small_yaml: Path
) -> None:
    config = load_config(str(small_yaml), settings)
    size = 4 * ParamTable.of(models.build_fresh(config.model)).size
    assert object_store_bytes(config) - (256 << 20) == num_vectors * size


def test_a_preset_finds_released_flow_weights_beside_the_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config("rvrt", ["data.videos=[a.mp4]", "model.size=demo"])
    with pytest.raises(UserError) as error:
        require_weights(config)
    assert str(error.value).startswith(
        f"model.flow_weights: there is no file stores/{RELEASED_FLOW}; "
    )
    assert "--set model.flow_weights=null --set local.freeze_steps=0" in str(error.value)
    assert "\n" not in str(error.value)
    # A file of the released one's shapes and wrapper.
    flow = SpyNet()
    recipe.fill(flow)
    (tmp_path / "stores").mkdir()
    torch.save({"params": dict(flow.named_parameters())}, tmp_path / "stores" / RELEASED_FLOW)
    require_weights(config)
    (note,) = notes_of(config, Split((), (), ()))
    assert "weights of unknown origin, not the released file" in note, "only its shapes are"
    assert "from scratch" not in note
    network = models.build_fresh(config.model)
    models.load_start(network, config.model)
    for name, value in flow.named_parameters():
        assert torch.equal(network.get_parameter(f"spynet.{name}"), value)
    other = load_config("rvrt", ["data.videos=[a.mp4]", "model.weights=a.pth"])
    with pytest.raises(UserError, match=r"^model\.weights: there is no file a\.pth; correct"):
        require_weights(other)


def test_adapters_need_weights_and_layers(small_yaml: Path) -> None:
    adapted = load_config(str(small_yaml), ["model.adapter={rank: 2}"])
    with pytest.raises(UserError, match=r"^model\.adapter .* give a trained network by --set"):
        require_weights(adapted)
    with pytest.raises(UserError, match=r"targets = linear finds no such layer in tiny; set it to"):
        require_weights(load_config(str(small_yaml), ["model={adapter: {}, weights: a.pth}"]))
    settings = ["model={adapter: {targets: conv}, weights: a.pth}"]
    whole = load_config(str(small_yaml), settings)
    with pytest.raises(UserError, match=r"^model\.weights: there is no file a\.pth"):
        require_weights(whole)
