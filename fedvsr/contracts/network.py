"""The contract of every network, in parts; each takes its settings and a folder for clips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedvsr import models
from fedvsr.algorithms import fedvsr
from fedvsr.contracts import require, samples
from fedvsr.determinism import scoped_torch
from fedvsr.messages import ClientTask
from fedvsr.models.spec import ModelConfig
from fedvsr.params import ParamTable, flatten
from fedvsr.training.config import LocalConfig
from fedvsr.training.features import with_features
from fedvsr.training.local import LocalTrainer
from fedvsr.training.requirements import model_spec

# The normalisations that parts of the name `norm` consist of.
_NORMS = (torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.modules.batchnorm._BatchNorm)


def enlarges_clips_by_its_scale(config: ModelConfig, _: Path) -> None:
    """Clips `(B, T, 3, H, W)` become `(B, T, 3, scale * H, scale * W)`, and stay finite."""
    network, lq = _network(config).eval(), _sample(config)
    rules = model_spec(config)
    require(getattr(network, "spec", None) == rules, "Model.spec is not spec(config)")
    require(hasattr(network, "compiled_layers"), "Model has no compiled_layers; () is enough")
    with torch.no_grad():
        sr = network(lq)
    expected = (*lq.shape[:3], rules.scale * lq.shape[3], rules.scale * lq.shape[4])
    require(sr.shape == expected, f"{tuple(lq.shape)} became {tuple(sr.shape)}, not {expected}")
    require(bool(torch.isfinite(sr).all()), "an output is not finite")


def features_are_a_map_for_every_frame_and_carry_gradients(config: ModelConfig, _: Path) -> None:
    """The module that `ModelSpec.features` names, if any, gets (B * T, C, H, W)."""
    network, lq = _network(config), _sample(config)
    name = model_spec(config).features
    if name is None:
        # Methods that contrast features then refuse the network.
        return
    sr, features = with_features(network, name, lq)
    maps = (sr.shape[0] * sr.shape[1], *lq.shape[3:])
    got = (features.shape[0], *features.shape[2:])
    require(got == maps, f"{name} gets {tuple(features.shape)}: one H x W map a frame is needed")
    features.square().mean().backward()  # type: ignore[no-untyped-call]
    count = len(list(network.parameters()))
    learns = [n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()]
    # All except those that enlarge the features; a last layer of zeros may hide some more.
    found = f"the features reach {len(learns)} of {count} parameters"
    require(len(learns) > 0.8 * count, found)


def only_parameters_learn(config: ModelConfig, _: Path) -> None:
    """Buffers are constants of the architecture, so they need not travel."""
    networks = [_network(config, seed) for seed in (1, 2)]
    networks[0](_sample(config))
    one, two = (dict(network.named_buffers()) for network in networks)
    require(one.keys() == two.keys(), "two networks have different buffers")
    for key in one:
        same = torch.equal(one[key], two[key])
        require(same, f"the buffer {key} changes; only parameters may, as only they travel")


def parts_are_what_their_names_say(config: ModelConfig, _: Path) -> None:
    """No part is empty; the features depend on the encoder alone, the decoder is all the rest."""
    rules, network = model_spec(config), _network(config)
    found = {
        part: {name for name, _ in network.named_parameters() if rules.in_part(part, name)}
        for part in rules.parts
    }
    empty = [part for part, inside in found.items() if not inside]
    require(not empty, f"no parameter is in {', '.join(empty)}")
    if "norm" in found:
        norms = {
            f"{prefix}.{name}"
            for prefix, module in network.named_modules()
            if isinstance(module, _NORMS)
            for name, _ in module.named_parameters(recurse=False)
        }
        require(found["norm"] == norms, f"norm differs in {sorted(found['norm'] ^ norms)[:3]}")
    if not {"encoder", "decoder"} <= found.keys() or rules.features is None:
        return
    encoder, decoder = found["encoder"], found["decoder"]
    every = {name for name, _ in network.named_parameters()}
    both = sorted((encoder & decoder) | (every - encoder - decoder))
    require(not both, f"in both of encoder and decoder, or in neither: {both[:3]}")
    features = with_features(network, rules.features, _sample(config))[1]
    features.square().mean().backward()  # type: ignore[no-untyped-call]
    reached = {name for name, p in network.named_parameters() if p.grad is not None}
    late = sorted(reached & decoder)
    require(not late, f"the features depend on the decoder: {late[:3]}")


def fedvsr_trains_it(config: ModelConfig, folder: Path) -> None:
    """Two steps of FedVSR move every parameter that the output depends on."""
    rules = model_spec(config)
    crop = rules.scale * max(16, rules.min_size)
    num_frames = max(4, rules.min_frames)
    clips = samples.clips(folder, 1, num_frames, crop, crop)
    local = LocalConfig(steps=2, batch_size=1, num_frames=num_frames, crop=crop, lr=1e-3)
    with scoped_torch(0, 1):
        trainer = LocalTrainer(config, fedvsr.Config(), local)
    params = flatten(trainer.network)
    task = ClientTask(client_id=0, round_idx=1, num_rounds=1, seed=0)
    report, update = trainer.train(task, {"params": params}, {}, clips)
    require(report.loss > report.vsr_loss > 0, f"losses {report.loss:g}, {report.vsr_loss:g}")
    require(update.state == {}, "a client remembers something")
    table = ParamTable.of(trainer.network)
    before, after = table.views(params), table.views(np.asarray(update.upload["params"]))
    still = {key for key in before if (before[key] == after[key]).all()}
    unused = {key for key, p in trainer.network.named_parameters() if _without_effect(p.grad)}
    require(
        still <= unused, f"{len(still - unused)} parameters did not move: {min(still, default='')}"
    )


def _without_effect(gradient: Tensor | None) -> bool:
    """Whether there is no gradient, or one of rounding alone, with which Adam moves nothing.

    A gradient of zero is another matter: nothing reaches that parameter, though it is used.
    """
    # At Adam's eps of 1e-8, gradients below this move no parameter in float32.
    return gradient is None or 0 < float(gradient.abs().max()) < 1e-13


CONTRACTS: tuple[Callable[[ModelConfig, Path], None], ...] = (
    enlarges_clips_by_its_scale,
    features_are_a_map_for_every_frame_and_carry_gradients,
    only_parameters_learn,
    parts_are_what_their_names_say,
    fedvsr_trains_it,
)


def _network(config: ModelConfig, seed: int = 0) -> torch.nn.Module:
    with scoped_torch(seed, 1):
        return models.build_fresh(config).train()


def _sample(config: ModelConfig) -> torch.Tensor:
    """Low-resolution noise of the smallest size: two clips of four frames."""
    rules = model_spec(config)
    side = max(8, rules.min_size)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, max(4, rules.min_frames), 3, side, side, generator=generator)
