"""Reconstruct a frame from the update of one small step: update inversion.

The attacker is the server, or whoever sees one client's update. It knows the network, the global
parameters before the step, the settings and what the client reported, and no frame. For a step of
SGD the update is, up to its length, the gradient `J(lq)^T e`: J is the Jacobian of the network's
output with respect to its parameters, and `e` the slope of the loss at each pixel of the output.
The attack looks for the input `lq` and the slopes `e` whose gradient points where the update does
(Zhu et al. 2019; the cosine distance and the prior of small total variation are those of Geiping et
al. 2020). Slopes instead of a target, because the slope of a Charbonnier loss is nearly the sign of
the error, through which no optimiser can look back at the target.

B clips, T frames, C channels, H x W the low-resolution size, s the scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedvsr.algorithms.base import Batch
from fedvsr.determinism import scoped_torch
from fedvsr.errors import UserError
from fedvsr.losses import charbonnier
from fedvsr.params import split_tensors
from fedvsr.seeding import derive_seed

if TYPE_CHECKING:
    from fedvsr.algorithms.base import FedAvg
    from fedvsr.params import FloatVector

Shape = tuple[int, int, int]
"""Frames, height and width of a low-resolution input."""

_LR = 0.03
# Deviation of the noise that a start adds to its colour.
_SPREAD = 0.1
# Where only signs are known: a value of this part of the mean size counts as half its sign.
_SOFTNESS = 0.3


@dataclass(frozen=True)
class Effort:
    """How hard the attack tries."""

    iterations: int = 600
    starts: int = 1
    """Random starts, of which the best match is kept."""
    seed: int = 0
    smoothness: float = 0.3
    """Weight of the input's total variation, beside the logarithm of the mismatch."""


@dataclass(frozen=True)
class Guess:
    """What an attack found."""

    lq: Tensor
    """Input (1, T, 3, H, W), in [0, 1]."""
    slopes: Tensor
    """Slope of the loss by output value, (1, T, 3, sH, sW), up to one factor."""
    mismatch: float
    """Mean cosine distance, by parameter tensor, of the guess's gradient from the update."""


class Target:
    """An update, as the attack compares gradients with it.

    Args:
        change: global parameters minus those that the client sent.
        network: the network. Its parameters that require no gradient were not sent.
        sparse: whether zeros are values that were not sent, and not zeros.
        signs: whether the update is that of Adam's first step, which keeps a gradient's signs.
    """

    def __init__(
        self, change: FloatVector, network: nn.Module, sparse: bool = False, signs: bool = False
    ) -> None:
        self.signs = signs
        self.tensors = split_tensors(_sent(network), change)
        self._masks = [(t != 0).float() if sparse else None for t in self.tensors]
        self._units = [_unit(t) for t in self.tensors]
        self._used = [bool(t.any()) for t in self.tensors]

    @property
    def empty(self) -> bool:
        """Whether the update is zero."""
        return not any(self._used)

    def mismatch(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Mean cosine distance, by parameter tensor; tensors that did not change are left out."""
        parts = list[Tensor]()
        columns = zip(gradients, self._units, self._masks, self._used, strict=True)
        for gradient, unit, mask, used in columns:
            if not used:
                continue
            if gradient is None:
                parts.append(torch.ones(()))
                continue
            if self.signs:
                gradient = gradient / (gradient.abs() + _SOFTNESS * gradient.abs().mean() + 1e-20)
            sent = gradient if mask is None else gradient * mask
            parts.append(1 - (sent * unit).sum() / (sent.norm() + 1e-20))
        return torch.stack(parts).mean()


def invert(
    network: nn.Module,
    target: Target,
    shape: Shape,
    effort: Effort,
    tick: Callable[[int], None] = lambda _: None,
) -> Guess:
    """Look for the input and the slopes whose gradient matches an update.

    Args:
        network: with the parameters that the client started from.
        target: the update.
        shape: of the input to look for.
        effort: how hard to try.
        tick: called with the number of iterations so far.

    Raises:
        UserError: the update is zero, or the network cannot be differentiated twice.
    """
    if target.empty:
        raise UserError("the update is zero: nothing can be reconstructed from it")
    colour = None if target.signs else mean_colour(network, target.tensors)
    best: Guess | None = None
    for start in range(effort.starts):
        with scoped_torch(derive_seed(effort.seed, "attack", start), 1):
            before = start * effort.iterations
            guess = _descend(network, target, shape, colour, effort, tick, before)
        if best is None or guess.mismatch < best.mismatch:
            best = guess
    assert best is not None
    return best


def _descend(
    network: nn.Module,
    target: Target,
    shape: Shape,
    colour: Tensor | None,
    effort: Effort,
    tick: Callable[[int], None],
    before: int,
) -> Guess:
    frames, height, width = shape
    params = _sent(network)
    middle = torch.full((3,), 0.5) if colour is None else colour
    lq = middle.view(1, 1, 3, 1, 1) + _SPREAD * torch.randn(1, frames, 3, height, width)
    lq = lq.clamp(0, 1).requires_grad_()
    with torch.no_grad():
        slopes = 0.3 * torch.randn_like(network(lq))
    slopes.requires_grad_()
    # The gradients are small: Adam's usual constant would hold them up.
    optimiser = torch.optim.Adam([lq, slopes], _LR, eps=1e-15)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, effort.iterations)
    mismatch = torch.ones(())
    for i in range(effort.iterations):
        product = (network(lq) * slopes).sum()
        try:
            gradients = torch.autograd.grad(product, params, create_graph=True, allow_unused=True)
            mismatch = target.mismatch(gradients)
            # The logarithm keeps the objective steep to the end.
            loss = mismatch.log() + effort.smoothness * _variation(lq)
            lq.grad, slopes.grad = torch.autograd.grad(loss, (lq, slopes))
        except RuntimeError as error:
            raise UserError(
                "this network cannot be attacked so: the attack needs second derivatives, and a "
                f"layer has none ({str(error).splitlines()[0]})"
            ) from None
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            lq.clamp_(0, 1)
        tick(before + i + 1)
    return Guess(lq.detach(), slopes.detach(), float(mismatch.item()))


def target_frames(
    network: nn.Module, guess: Guess, algorithm: FedAvg, eps: float, loss: float
) -> Tensor:
    """The ground truth (1, T, 3, sH, sW) that a guess implies, in [0, 1].

    The error of the output points along the slopes. Its length is the one at which the loss is the
    one that the client reported: up to `eps` the losses are proportional to the error.
    """
    with torch.no_grad():
        sr = network(guess.lq)
        error = guess.slopes / guess.slopes.abs().mean()
        zero = torch.zeros_like(error)
        of_error = algorithm.local_loss(Batch(charbonnier(error, zero, eps), error, zero))
        gt: Tensor = (sr - error * (loss / of_error)).clamp(0, 1)
    return gt


def mean_colour(network: nn.Module, change: Sequence[Tensor]) -> Tensor | None:
    """A colour (3,) of the input, in closed form; None if nothing reaches the first layer.

    The gradient of a convolution's bias is the sum of a slope over all positions, and that of the
    middle of its kernel the same sum of slope times input. Their ratio is the mean of the input,
    weighted by the slopes: exactly the colour of a frame of one colour.
    """
    first = _first_convolution(network)
    if first is None or first[0].bias is None:
        return None
    layer, offset, gain = first
    changes = {id(p): c for p, c in zip(_sent(network), change, strict=True)}
    if not {id(layer.weight), id(layer.bias)} <= set(changes):
        return None
    weight, bias = changes[id(layer.weight)], changes[id(layer.bias)]
    if not bias.any():
        return None
    rows, columns = (side // 2 for side in weight.shape[2:])
    middle = weight[:, :, rows, columns]
    mean = (middle * bias[:, None]).sum(0) / bias.square().sum()
    return ((mean - offset) / gain).clamp(0, 1)


def _sent(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _first_convolution(network: nn.Module) -> tuple[nn.Conv2d, Tensor, Tensor] | None:
    """The first convolution, if its input is the network's but for an offset and a gain."""
    seen = list[tuple[nn.Module, Tensor]]()

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append((module, inputs[0].detach()))

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    inputs = list[Tensor]()
    try:
        with torch.no_grad():
            for value in (0.0, 1.0):
                seen.clear()
                network(torch.full((1, 1, 3, 8, 8), value))
                layer, values = seen[0]
                inputs.append(values)
    except (RuntimeError, IndexError, ValueError):
        # Not a network of single frames of 8 x 8 pixels: the attack starts from grey.
        return None
    finally:
        for hook in hooks:
            hook.remove()
    assert isinstance(layer, nn.Conv2d)
    flat = all(float((v.amax((0, 2, 3)) - v.amin((0, 2, 3))).max()) < 1e-6 for v in inputs)
    if inputs[0].shape[1] != 3 or not flat:
        return None
    black, white = (v.mean((0, 2, 3)) for v in inputs)
    return layer, black, white - black


def _variation(frames: Tensor) -> Tensor:
    """Mean difference of neighbouring pixels."""
    down = (frames[..., 1:, :] - frames[..., :-1, :]).abs().mean()
    right = (frames[..., 1:] - frames[..., :-1]).abs().mean()
    return down + right


def _unit(tensor: Tensor) -> Tensor:
    unit: Tensor = tensor / (tensor.norm() + 1e-20)
    return unit
