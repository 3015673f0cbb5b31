"""`torch.compile` takes each network as one graph, on the path of a CPU and on that of a GPU.

Traced with fake tensors, which have a device and a shape but no memory: no GPU is needed, and
nothing is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fedvsr import models
from fedvsr.models import _triton
from fedvsr.models.rvrt.network import GuidedDeformableAttention
from fedvsr.models.vrt.network import _Group

pytest.importorskip("triton", reason="Triton is not installed")

# It traces into them; `constant_in_graphs` marks what it must not.
pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")

FRAMES = {"tiny": 2, "rvrt": 4, "vrt": 6, "iart": 3, "basicvsrpp": 3}
QUICK = {("tiny", "cuda"), ("basicvsrpp", "cuda")}


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Tensors are fake, also those on GPUs, which Triton serves."""
    serves = _triton.constant_in_graphs(lambda _: True)
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(_triton, "triton_serves", serves),
        # Whether cuDNN samples images would be asked of the GPU.
        torch.backends.cudnn.flags(enabled=False),
    ):
        yield
    torch._dynamo.reset()


def in_one_graph(module: nn.Module, *inputs: Any) -> tuple[Any, set[str]]:
    """What a module gives, and the names of fedvsr's own operators in its only graph.

    Raises:
        torch._dynamo.exc.Unsupported: one graph does not hold the module's work.
    """
    own = set[str]()

    def look(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        for part in graph.modules():
            if isinstance(part, torch.fx.GraphModule):
                names = {str(node.target) for node in part.graph.nodes}
                own.update(name for name in names if name.startswith("fedvsr."))
        return graph.forward

    return torch.compile(module, fullgraph=True, backend=look)(*inputs), own


def both(operator: str) -> set[str]:
    return {f"fedvsr.{operator}", f"fedvsr.{operator}_backward"}


def test_a_small_network_is_one_graph() -> None:
    network = models.build("tiny").train()
    with fake_tensors():
        network.to_empty(device="cpu")
        sr, own = in_one_graph(network, torch.empty(1, 2, 3, 16, 16))
    assert sr.shape == (1, 2, 3, 64, 64)
    assert not own


def test_rvrts_kernels_are_in_the_graph() -> None:
    config: Any = import_module("fedvsr.models.rvrt").Config(size="demo")
    with torch.device("meta"):
        align = GuidedDeformableAttention(config)
    with fake_tensors():
        align.to_empty(device="cuda")
        x = torch.empty(2, config.embed_dims[1], 8, 8, device="cuda")
        guide = torch.empty(2, 2, 2, 8, 8, device="cuda")
        (aligned, _), own = in_one_graph(align, x, x, x, torch.stack((x, x), dim=1), guide)
    assert aligned.shape == x.shape
    assert own == both("guided_attention")


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.full), "cuda"])
def test_vrts_windows_do_not_break_the_graph(device: str) -> None:
    config: Any = import_module("fedvsr.models.vrt").Config(size="demo", checkpointing="none")
    with torch.device("meta"):
        # The second block shifts its windows.
        group = _Group(config, 24, 2, (2, 4, 4), [0.0, 0.1], mutual=True)
    with fake_tensors():
        group.to_empty(device=device)
        x = torch.empty(1, 4, 8, 8, 24, device=device)
        out, own = in_one_graph(group, x)
    assert out.shape == x.shape
    assert own == (both("window_attention") if device == "cuda" else set())


@pytest.mark.parametrize(
    ("name", "device"),
    [
        pytest.param(
            name,
            device,
            # BasicVSR++ takes less time to trace than the other recurrent networks.
            marks=pytest.mark.full if (name, device) in QUICK else pytest.mark.slow,
        )
        for name in FRAMES
        for device in ("cpu", "cuda")
    ],
)
def test_a_network_of_size_demo_is_one_graph(name: str, device: str) -> None:
    config = import_module(f"fedvsr.models.{name}").Config(
        **({} if name == "tiny" else {"size": "demo"})
    )
    with torch.device("meta"):
        network = models.build_fresh(config).train()
    with fake_tensors():
        network.to_empty(device=device)
        sr, _ = in_one_graph(network, torch.empty(1, FRAMES[name], 3, 64, 64, device=device))
    assert sr.shape == (1, FRAMES[name], 3, 256, 256)
    assert sr.requires_grad
