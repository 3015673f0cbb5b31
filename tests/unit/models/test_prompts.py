"""Prompts in window attention, on every network that has it."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from fedvsr import models
from fedvsr.determinism import scoped_torch
from fedvsr.errors import UserError
from fedvsr.lookup import load
from fedvsr.models import _attention, _windows
from fedvsr.models._prompts import prompt_names
from fedvsr.models._windows import biased_attention
from fedvsr.models.spec import ModelConfig
from fedvsr.training.checkpoint import save_model
from fedvsr.training.requirements import model_spec
from tests.golden import recipe
from tests.unit.models.fused import on_the_gpu_path
from tests.unit.models.small import SMALL

NUM_FRAMES = {"vrt": 2, "rvrt": 4, "iart": 3}
PROMPT = {"kind": "prompt", "tokens": 3}


def section(name: str, **settings: object) -> ModelConfig:
    settings = {**SMALL[name], **settings}
    config: ModelConfig = load("fedvsr.models", name).Config(**settings)
    return config


def fresh(config: ModelConfig, seed: int = 0) -> nn.Module:
    with scoped_torch(seed, 1):
        return models.build_fresh(config)


def test_a_prompts_keys_and_values_join_by_hand() -> None:
    # One window of one token, one head of one channel: q = ln 2, k = 1, v = 10, and a bias of ln 3.
    # The prompt has k = 2 and v = 0, and no bias: weights 2 * 3 and 2 ^ 2 of 10.
    qkv = torch.tensor([[[math.log(2), 1.0, 10.0]]])
    bias = torch.tensor([[[math.log(3)]]])
    out = biased_attention(qkv, bias, None, torch.tensor([[7.0, 2.0, 0.0]]))
    assert out.item() == pytest.approx(6.0, rel=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_a_prompt_equals_tokens_that_are_never_asked(masked: bool) -> None:
    """The plain attention of tokens and prompt together, if nobody looks at the prompt's place."""
    draw = torch.Generator().manual_seed(0)
    qkv, prompt = (torch.randn(*s, generator=draw) for s in ((4, 5, 24), (3, 24)))
    bias = torch.randn(2, 5, 5, generator=draw)
    if masked:
        bias = bias + _windows.SEPARATE * (torch.rand(5, 5, generator=draw) < 0.3)
    together = torch.cat((prompt.expand(4, -1, -1), qkv), dim=1)
    wide = torch.zeros(2, 8, 8)
    wide[:, 3:, 3:] = bias
    expected = biased_attention(together, wide)[:, 3:]
    torch.testing.assert_close(biased_attention(qkv, bias, None, prompt), expected)


@pytest.mark.parametrize("masked", [False, True])
def test_both_frames_of_mutual_attention_look_at_the_prompt(masked: bool) -> None:
    with scoped_torch(0, 1):
        layer = _attention.WindowAttention(8, (2, 1, 4), 1, mutual=True)
        layer.prompt = nn.Parameter(torch.randn(3, 8))
        x = torch.randn(1, 8, 8)
    place = torch.arange(8) % 4 < 2
    mask = _windows.SEPARATE * (place[:, None] != place) if masked else None
    with torch.no_grad():
        got = layer._attend_mutually(x, [1], [mask])[0]
        own = layer.qkv_mut(x + layer.position_bias.repeat(1, 2, 1))[0].view(2, 4, 3, 8)
        _, *of_prompt = layer.qkv_mut(layer.prompt).view(3, 3, 8).unbind(1)
        for frame, other in ((0, 1), (1, 0)):
            # The other frame's queries look at this frame and at the prompt, which no mask hides.
            pairs = zip(of_prompt, own[frame].unbind(1)[1:], strict=True)
            k, v = (torch.cat(pair) for pair in pairs)
            logits = own[other, :, 0] @ k.T / 8**0.5
            if mask is not None:
                logits[:, 3:] += mask[:4, :4]
            expected = logits.softmax(-1) @ v
            torch.testing.assert_close(got.view(2, 4, 8)[frame], expected)


@pytest.mark.parametrize("name", NUM_FRAMES)
def test_prompts_alone_learn_and_are_saved(name: str, tmp_path: Path) -> None:
    plain = section(name)
    base = fresh(plain)
    recipe.fill(base)
    save_model(tmp_path / "base.safetensors", base, plain)
    config = section(name, weights=str(tmp_path / "base.safetensors"), adapter=PROMPT)
    network = fresh(config)
    models.load_start(network, config)
    own = set(prompt_names(network))
    state = network.state_dict()
    assert own == set(state) - set(base.state_dict())
    assert own
    assert all(torch.equal(state[n], value) for n, value in base.state_dict().items())
    rules = model_spec(config)
    lq = torch.rand(1, max(NUM_FRAMES[name], rules.min_frames), 3, *(max(8, rules.min_size),) * 2)
    with scoped_torch(0, 1):
        sr = network.eval()(lq)
        sr.square().mean().backward()
    learns = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert learns == own
    save_model(tmp_path / "prompted.safetensors", network, config)
    again = models.load_checkpoint(tmp_path / "prompted.safetensors")
    # Not the kernels of a GPU, which know no prompts. RVRT would call others, which need a GPU.
    gpu = nullcontext() if name == "rvrt" else on_the_gpu_path()
    with scoped_torch(0, 1), torch.no_grad(), gpu, pytest.MonkeyPatch.context() as patch:
        for module in (_windows.WindowAttention, _attention.WindowAttention):
            patch.delattr(module, "in_image")
        assert torch.equal(again(lq), sr)


def test_what_is_recomputed_has_the_same_prompts() -> None:
    gradients = []
    for kind in ("none", "attention", "blocks"):
        network = fresh(section("iart", depths=(1,), adapter=PROMPT, checkpointing=kind))
        recipe.fill(network)
        with scoped_torch(0, 1):
            network(torch.rand(1, 3, 3, 32, 32)).square().mean().backward()
        gradients.append([p.grad for p in network.parameters() if p.requires_grad])
    for plain, *recomputed in zip(*gradients, strict=True):
        for other in recomputed:
            torch.testing.assert_close(plain, other)


@pytest.mark.parametrize(
    ("name", "layers", "num_values"),
    # 20 tokens of 56 layers of 120 and 24 of 180 channels; of 20 of 144; and of 72 of 120.
    [("vrt", 80, 220_800), ("rvrt", 20, 57_600), ("iart", 72, 172_800)],
)
def test_prompts_of_the_papers_networks_are_small(name: str, layers: int, num_values: int) -> None:
    config = load("fedvsr.models", name).Config(size="paper", adapter={"kind": "prompt"})
    with torch.device("meta"):
        network = models.build_fresh(config)
    assert len(prompt_names(network)) == layers
    learning = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert learning == num_values


@pytest.mark.parametrize("name", ["tiny", "basicvsrpp"])
def test_a_network_without_attention_is_refused(name: str) -> None:
    config = load("fedvsr.models", name).Config(adapter=PROMPT)
    with (
        torch.device("meta"),
        pytest.raises(UserError, match=f"kind = prompt finds no window attention in {name}; take"),
    ):
        models.build_fresh(config)
