"""What only a GPU can show of a client's gradients: `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch

from fedvsr import algorithms, models
from fedvsr.determinism import scoped_torch
from fedvsr.lookup import load
from fedvsr.params import flatten, load_flat
from fedvsr.training.config import LocalConfig
from fedvsr.training.gradients import Frames, Gradients
from fedvsr.training.optimiser import make_optimiser, moments, restore_moments

pytestmark = pytest.mark.gpu


def batches() -> list[Frames]:
    """Seven batches of two samples; every third has one."""
    draw = torch.Generator().manual_seed(3)
    sizes = [1 if i % 3 == 2 else 2 for i in range(7)]
    return [
        tuple(
            torch.randint(0, 256, (n, 3, 3, side, side), generator=draw, dtype=torch.uint8)
            for side in (16, 64)
        )
        for n in sizes
    ]


def trained(algorithm: str, precision: str, cuda_graphs: bool) -> tuple[bytes, list[float]]:
    """Parameters and losses after two rounds; the second continues with the first one's moments."""
    model = load("fedvsr.models", "tiny").Config()
    local = LocalConfig(precision=precision, cuda_graphs=cuda_graphs)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = models.build_fresh(model).cuda().train()
    method = algorithms.build(load("fedvsr.algorithms", algorithm).Config())
    gradients = Gradients(network, model, method, local)
    losses, state = list[float](), {}
    kept = None
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(2):
            start = flatten(network)
            gradients.begin({"params": start}, state)
            optimiser = make_optimiser(local, list(network.parameters()), [])
            if kept is not None:
                restore_moments(optimiser, kept)
            scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")
            for batch in batches():
                computed = gradients.compute(batch, scaler)
                scaler.step(optimiser)
                scaler.update()
                losses += computed.tolist()
            kept = moments(optimiser)
            state = {"params": flatten(network)}
            gradients.release()
    assert all(p.grad is None for p in network.parameters()) or not cuda_graphs
    return flatten(network).tobytes(), losses


@pytest.mark.parametrize("algorithm", ["fedvsr", "moon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_graphs_change_no_bit(algorithm: str, precision: str) -> None:
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        eager = trained(algorithm, precision, cuda_graphs=False)
        replayed = trained(algorithm, precision, cuda_graphs=True)
    assert eager == replayed
    assert eager[1][-1] != eager[1][0]


@pytest.mark.parametrize("checkpointing", ["none", "attention", "blocks"])
@pytest.mark.parametrize("name", ["vrt", "rvrt", "iart", "basicvsrpp"])
def test_every_network_is_replayed(name: str, checkpointing: str) -> None:
    # A warning, which the tests take for an error, would say that it is not.
    model = load("fedvsr.models", name).Config(size="demo", checkpointing=checkpointing)
    local = LocalConfig(precision="bf16")
    network = models.build_fresh(model).cuda().train()
    method = algorithms.build(load("fedvsr.algorithms", "fedvsr").Config())
    gradients = Gradients(network, model, method, local)
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    draw = torch.Generator().manual_seed(3)
    lq, gt = (
        torch.randint(0, 256, (1, 6, 3, side, side), generator=draw, dtype=torch.uint8)
        for side in (64, 256)
    )
    gradients.begin({"params": flatten(network)}, {})
    with torch.cuda.stream(torch.cuda.Stream()):
        # Read in this stream: another would not wait for it.
        losses = [gradients.compute((lq, gt), scaler)[0].item() for _ in range(4)]
    # No step changes the network, but atomic sums and dropped paths change a few bits.
    assert 0 < max(losses) < 1.2 * min(losses)


@pytest.mark.parametrize("name", ["vrt", "rvrt", "iart", "basicvsrpp"])
def test_a_fixed_order_gives_the_same_bits_again(name: str) -> None:
    model = load("fedvsr.models", name).Config(size="demo")
    network = models.build_fresh(model).cuda().train()
    method = algorithms.build(load("fedvsr.algorithms", "fedvsr").Config())
    start = flatten(network)
    draw = torch.Generator().manual_seed(3)
    lq, gt = (
        torch.randint(0, 256, (1, 6, 3, side, side), generator=draw, dtype=torch.uint8)
        for side in (64, 256)
    )
    seen = set()
    for cuda_graphs in (False, True, True):
        gradients = Gradients(network, model, method, LocalConfig(cuda_graphs=cuda_graphs))
        load_flat(network, start)
        gradients.begin({"params": start}, {})
        scaler = torch.amp.GradScaler("cuda", enabled=False)
        with scoped_torch(7, 1, fixed_order=True), torch.cuda.stream(torch.cuda.Stream()):
            optimiser = make_optimiser(LocalConfig(), list(network.parameters()), [])
            for _ in range(4):
                gradients.compute((lq, gt), scaler)
                optimiser.step()
            gradients.release()
        seen.add(flatten(network).tobytes())
    assert len(seen) == 1
