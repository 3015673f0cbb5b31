"""Local optimisers: construction, learning rates, and their state as one vector."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fedvsr.params import FloatVector, join_tensors

if TYPE_CHECKING:
    from fedvsr.training.config import LocalConfig


class _Uncompiled(torch.optim.Optimizer):
    """An optimiser without what PyTorch needs in order to compile it.

    PyTorch's own methods import `torch._dynamo` at their first call, with SymPy and Triton: a CPU
    second and 200 MB in every client's process. These are the functions below its decorators, so
    they give the same bits.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; see `torch.optim.Optimizer.step`."""
        plain = inspect.unwrap(super().step.__func__)  # type: ignore[attr-defined]
        with torch.no_grad():
            return plain(self, closure)


class _SGD(_Uncompiled, torch.optim.SGD): ...


class _Adam(_Uncompiled, torch.optim.Adam): ...


class _AdamW(_Uncompiled, torch.optim.AdamW): ...


def make_optimiser(
    local: LocalConfig, params: Sequence[nn.Parameter], slow: Sequence[nn.Parameter]
) -> torch.optim.Optimizer:
    """A new optimiser; the `factor` of a parameter group scales its learning rate.

    Args:
        local: settings of the optimiser.
        params: all parameters of the network.
        slow: those among them that learn more slowly.
    """
    slow_ids = {id(parameter) for parameter in slow}
    usual = [p for p in params if id(p) not in slow_ids]
    groups: list[dict[str, object]] = [{"params": usual, "factor": 1.0}]
    if slow:
        groups.append({"params": list(slow), "factor": local.slow_factor})
    # One kernel for many tensors; on a CPU, the default's bits are kept.
    fused = True if params[0].is_cuda else None
    if local.optimizer == "sgd":
        return _SGD(
            groups,
            lr=local.lr,
            momentum=local.momentum,
            weight_decay=local.weight_decay,
            fused=fused,
        )
    kind = _Adam if local.optimizer == "adam" else _AdamW
    return kind(
        groups, lr=local.lr, betas=local.betas, weight_decay=local.weight_decay, fused=fused
    )


def moments(optimiser: torch.optim.Optimizer) -> FloatVector:
    """An optimiser's state: its moments, and each parameter's number of steps, which Adam needs.

    A vector of `num_moments * P` values followed by one number per parameter tensor. A parameter
    that has not been updated yet has zeros, as at the optimiser's start.
    """
    parts = list[Tensor]()
    for name in _moment_names(optimiser):
        values = [optimiser.state[p].get(name) for p in _params(optimiser)]
        parts += [
            torch.zeros_like(p) if value is None else value
            for p, value in zip(_params(optimiser), values, strict=True)
        ]
    none = torch.zeros(())
    steps = [torch.as_tensor(optimiser.state[p].get("step", none)) for p in _params(optimiser)]
    return join_tensors([*parts, *steps])


def restore_moments(optimiser: torch.optim.Optimizer, vector: FloatVector) -> None:
    """Load what `moments` returned into a new optimiser."""
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
            # A fused optimiser counts on the parameter's device, others on the CPU.
            device = parameter.device if optimiser.defaults["fused"] else step.device
            optimiser.state[parameter]["step"] = step.to(device, copy=True)


def learning_rate(local: LocalConfig, progress: float) -> float:
    """The learning rate after a part `progress`, in [0, 1), of all local steps."""
    if local.schedule == "constant":
        return local.lr
    span = local.lr - local.min_lr
    return local.min_lr + span * (1 + math.cos(math.pi * progress)) / 2


def effective_steps(local: LocalConfig, mu: float, rates: Sequence[float]) -> float:
    """FedNova's |a|_1 (Wang et al. 2020): the distance covered if every gradient were 1.

    The unit is the mean of the learning `rates`, one per step. For Adam, whose steps do not scale
    with the gradient, it is the number of steps.
    """
    if local.optimizer != "sgd":
        return float(len(rates))
    distance = momentum = 0.0
    for rate in rates:
        # The proximal term pulls back in proportion to the distance so far.
        momentum = local.momentum * momentum + (1 - mu * distance)
        distance += rate * momentum
    return distance * len(rates) / math.fsum(rates)


def lipschitz(local: LocalConfig, lr: float, gradient_norm: float, update_norm: float) -> float:
    """q-FFL's L (Li et al. 2020), the factor that turns a client's update into a gradient.

    For SGD it is 1 / lr, as published. Adam's steps are thousands of times as long as `lr` times
    the gradient, so for Adam it is the factor that gives the whole update a gradient's length.

    Args:
        local: settings of the optimiser.
        lr: mean learning rate.
        gradient_norm: L2 norm of a gradient at the global parameters; 0 if unknown.
        update_norm: L2 norm of the update.
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
