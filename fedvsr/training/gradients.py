"""The loss of a batch and its gradients: one forward and one backward pass.

B clips, T frames, C channels, H x W pixels, values in [0, 1]. P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedvsr import models
from fedvsr.algorithms.base import Batch, FedAvg
from fedvsr.data.sampling import to_float
from fedvsr.graphs import Replayed
from fedvsr.layout import Layout, Role
from fedvsr.losses import charbonnier
from fedvsr.messages import Vectors
from fedvsr.models.spec import ModelConfig
from fedvsr.params import load_params, wipe
from fedvsr.precision import autocast
from fedvsr.training.config import LocalConfig
from fedvsr.training.features import with_features
from fedvsr.training.requirements import model_spec

# Low-resolution and ground-truth frames of a batch, (B, T, C, H, W) uint8.
Frames = tuple[Tensor, Tensor]


class _Pass(NamedTuple):
    """What a forward and a backward pass give."""

    losses: Tensor
    """The client's loss and the network's own part of it, `(2,)`."""
    gradients: list[Tensor | None]
    """A gradient per parameter, in the order of the parameters; None if it does not learn."""


class Gradients:
    """Computes a client's loss and its gradients; on a GPU from the second batch on as one graph.

    Args:
        network: the network that learns, on the device that computes.
        model: the network's section.
        algorithm: gives the loss.
        local: how to train.
        layout: which of the network's parameters are shared.
    """

    def __init__(
        self,
        network: nn.Module,
        model: ModelConfig,
        algorithm: FedAvg,
        local: LocalConfig,
        layout: Layout,
    ) -> None:
        self._network, self._algorithm, self._local = network, algorithm, local
        self._spec = model_spec(model)
        self._device = next(network.parameters()).device
        # The global network and the client's last one, for losses that compare with them.
        self._references = [
            models.build_fresh(model).to(self._device).eval().requires_grad_(False)
            for _ in range(2 if algorithm.contrasts else 0)
        ]
        self._layout = layout
        for reference in self._references:
            self._copy(reference, "frozen")
        self._compared: dict[str, nn.Module] = {}
        self._replayed: Replayed[_Pass] | None = None
        if self._device.type == "cuda" and local.cuda_graphs:
            self._replayed = Replayed("the training step")

    def begin(self, shared: Vectors, state: Vectors) -> None:
        """Load the networks that the algorithm compares with; none in a client's first round.

        Parameters that stay with the client are those of the network that learns.
        """
        self._compared = {}
        if self._references and "params" in state:
            vectors = {"global": shared["params"], "previous": state["params"]}
            for network, vector in zip(self._references, vectors.values(), strict=True):
                load_params(self._layout.params(network, "shared"), vector)
                self._copy(network, "own")
            self._compared = dict(zip(vectors, self._references, strict=True))

    def compute(self, batch: Frames, scaler: torch.amp.GradScaler, compare: bool = True) -> Tensor:
        """Set the gradients of the network's parameters.

        Args:
            batch: the frames.
            scaler: scales the loss.
            compare: whether the loss compares with the networks of `begin`.

        Returns:
            The client's loss and the network's own part of it, `(2,)`, not scaled. The next call
            may overwrite it.
        """
        compared = self._compared if compare else {}
        scale = scaler.scale(torch.ones((), device=self._device))
        work = partial(self._backward, compared)
        if self._replayed is None:
            return work(*batch, scale).losses
        params = list(self._network.parameters())
        key = (tuple(compared), tuple(p.requires_grad for p in params))
        done = self._replayed(key, work, *batch, scale)
        for parameter, gradient in zip(params, done.gradients, strict=True):
            parameter.grad = gradient
        return done.losses

    def release(self) -> None:
        """Free the GPU memory that only training needs."""
        if self._replayed:
            self._network.zero_grad(set_to_none=True)
            self._replayed.release()
            torch.cuda.empty_cache()

    def forget(self) -> None:
        """Wipe the networks that the last client's was compared with."""
        self._compared = {}
        for network in self._references:
            wipe(self._layout.params(network, "shared", "own"))

    def _copy(self, reference: nn.Module, role: Role) -> None:
        """Give a network those parameters of the one that learns that have a role."""
        pairs = (self._layout.params(network, role) for network in (reference, self._network))
        with torch.no_grad():
            for to, source in zip(*pairs, strict=True):
                to.copy_(source)

    def _backward(
        self, compared: Mapping[str, nn.Module], lq: Tensor, gt: Tensor, scale: Tensor
    ) -> _Pass:
        self._network.zero_grad(set_to_none=True)
        loss, vsr_loss = self._loss((lq, gt), compared)
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        losses = torch.stack((loss.detach(), vsr_loss.detach()))
        return _Pass(losses, [p.grad for p in self._network.parameters()])

    def _loss(self, batch: Frames, compared: Mapping[str, nn.Module]) -> tuple[Tensor, Tensor]:
        """The client's loss and the network's own part of it, both scalars."""
        lq_BTCHW, gt_BTCHW = (to_float(frames, self._device) for frames in batch)
        with autocast(self._device, self._local.precision):
            sr_BTCHW, features = self._forward(lq_BTCHW, compared)
        sr_BTCHW = sr_BTCHW.float()
        vsr_loss = charbonnier(sr_BTCHW, gt_BTCHW, self._spec.charbonnier_eps)
        outcome = Batch(vsr_loss, sr_BTCHW, gt_BTCHW, features)
        return self._algorithm.local_loss(outcome), vsr_loss

    def _forward(
        self, lq_BTCHW: Tensor, compared: Mapping[str, nn.Module]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if not compared:
            return self._network(lq_BTCHW), {}
        module = self._spec.features
        assert module is not None
        sr_BTCHW, own = with_features(self._network, module, lq_BTCHW)
        features = {"local": own}
        with torch.no_grad():
            for name, network in compared.items():
                features[name] = with_features(network, module, lq_BTCHW)[1]
        return sr_BTCHW, features
