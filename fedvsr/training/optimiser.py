"""Local optimisers: their making, their learning rates, and what they keep as one vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fedvsr.params import FloatVector, join_tensors

if TYPE_CHECKING:
    from fedvsr.training.config import LocalConfig


def make_optimiser(
    local: LocalConfig, params: Sequence[nn.Parameter], slow: Sequence[nn.Parameter]
) -> torch.optim.Optimizer:
    """A new optimiser; each group's `factor` scales the learning rate.

    Args:
        local: which.
        params: all of the network's.
        slow: those among them that learn more slowly.
    """
    apart = {id(parameter) for parameter in slow}
    usual = [p for p in params if id(p) not in apart]
    groups: list[dict[str, Any]] = [{"params": usual, "factor": 1.0}]
    if slow:
        groups.append({"params": list(slow), "factor": local.slow_factor})
    if local.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=local.lr, momentum=local.momentum, weight_decay=local.weight_decay
        )
    kind = torch.optim.Adam if local.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=local.lr, betas=local.betas, weight_decay=local.weight_decay)


def moments(optimiser: torch.optim.Optimizer) -> FloatVector:
    """What an optimiser keeps: its moments, and each parameter's count of steps, which Adam needs.

    A vector of `num_moments * P` values and a count a parameter tensor. A parameter that has not
    learnt yet has zeros, which is how both optimisers start.
    """
    parts = list[Tensor]()
    for name in _moment_names(optimiser):
        kept = [optimiser.state[p].get(name) for p in _params(optimiser)]
        parts += [
            torch.zeros_like(p) if value is None else value
            for p, value in zip(_params(optimiser), kept, strict=True)
        ]
    steps = [float(optimiser.state[p].get("step", 0.0)) for p in _params(optimiser)]
    return join_tensors([*parts, torch.tensor(steps)])


def restore_moments(optimiser: torch.optim.Optimizer, vector: FloatVector) -> None:
    """Let a new optimiser go on from what `moments` returned."""
    params = _params(optimiser)
    values = torch.from_numpy(np.array(vector))
    steps = values[-len(params) :]
    begin = 0
    for name in _moment_names(optimiser):
        for parameter in params:
            part = values[begin : begin + parameter.numel()].view_as(parameter)
            optimiser.state[parameter][name] = part.to(parameter.device, copy=True)
            begin += parameter.numel()
    if not isinstance(optimiser, torch.optim.SGD):
        for parameter, step in zip(params, steps, strict=True):
            optimiser.state[parameter]["step"] = step.clone()


def learning_rate(local: LocalConfig, progress: float) -> float:
    """The learning rate when a part `progress` in [0, 1) of all local steps has been taken."""
    if local.schedule == "constant":
        return local.lr
    span = local.lr - local.min_lr
    return local.min_lr + span * (1 + math.cos(math.pi * progress)) / 2


def effective_steps(local: LocalConfig, mu: float, rates: Sequence[float]) -> float:
    """FedNova's |a|_1 (Wang et al. 2020): the way that a gradient of 1 at every step makes.

    In units of the mean learning rate. Adam's steps have a length of their own; theirs are counted.
    """
    if local.optimizer != "sgd":
        return float(len(rates))
    way = momentum = 0.0
    for rate in rates:
        # The pull goes back along the way already made.
        momentum = local.momentum * momentum + (1 - mu * way)
        way += rate * momentum
    return way * len(rates) / math.fsum(rates)


def lipschitz(local: LocalConfig, lr: float, gradient_norm: float, update_norm: float) -> float:
    """q-FFL's L (Li et al. 2020): what makes a gradient of a client's change of its parameters.

    For SGD 1 / lr, as published. Adam's steps have a length of their own, thousands of times that
    of `lr` times the gradient: there it is what gives the whole change the length of a gradient.

    Args:
        local: which optimiser.
        lr: mean learning rate.
        gradient_norm: L2 norm of a gradient where the client began; 0 if unknown.
        update_norm: L2 norm of its change.
    """
    if local.optimizer == "sgd" or gradient_norm == 0 or update_norm == 0:
        return 1 / lr
    return gradient_norm / update_norm


def _params(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimiser.param_groups for p in group["params"]]


def _moment_names(optimiser: torch.optim.Optimizer) -> tuple[str, ...]:
    if isinstance(optimiser, torch.optim.SGD):
        return ("momentum_buffer",) if optimiser.defaults["momentum"] else ()
    return "exp_avg", "exp_avg_sq"
