"""Golden vectors of the networks: makes their weights, and compares a network with them.

The numbers come from the published implementations: float32, on a CPU, in evaluation mode. No
weights are stored: each follows from its parameter's name. A file in `models/` or `modules/` holds
the arrays of a case and, as JSON text in `meta`, its configuration. Of a long array, only every
k-th value is stored, with k in `meta`. The target of a network's loss is drawn from the seed.
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent

_FLOW_HEAD = re.compile(r"(^|\.)basic_module\.\d+\.basic_module\.(8|4\.conv)\.(weight|bias)$")
_DAMPED = re.compile(r"(^|\.)main\.2\.\d+\.conv2\.(weight|bias)$")
_OFFSET_CONV = re.compile(r"(?P<owner>.*)conv_offset\.(?P<index>\d+)\.(weight|bias)$")


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draw weights for named parameters from generators that the names seed.

    Norm scales are around 1, biases and bias tables around 0; other weights keep the variance of
    their input. The flow network's last convolutions are doubled, for flows of some pixels. The
    last convolutions that produce offsets are reduced to a tenth, for offsets below a pixel. Those
    of BasicVSR++'s residual blocks are reduced to 0.3, or its recurrence would grow to 200.
    """
    last: dict[str, int] = {}
    for name in shapes:
        if offset := _OFFSET_CONV.match(name):
            last[offset["owner"]] = max(last.get(offset["owner"], 0), int(offset["index"]))
    values = {}
    for name, shape in shapes.items():
        draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if len(shape) == 1 and name.endswith("weight"):
            draw = 1 + 0.05 * draw
        elif len(shape) == 1 or name.endswith("relative_position_bias_table"):
            draw = 0.02 * draw
        else:
            draw = draw / np.sqrt(np.prod(shape[1:]))
        if _FLOW_HEAD.search(name):
            draw = draw * 2.0
        if _DAMPED.search(name):
            draw = draw * 0.3
        offset = _OFFSET_CONV.match(name)
        if offset and int(offset["index"]) == last[offset["owner"]]:
            draw = draw * 0.1
        values[name] = draw.astype(np.float32)
    return values


def fill(module: nn.Module) -> None:
    """Set every parameter to its weights, and switch to evaluation mode."""
    parameters = dict(module.named_parameters())
    values = weights({name: tuple(p.shape) for name, p in parameters.items()})
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(values[name]))
    module.eval()


@dataclass(frozen=True)
class Case:
    """A stored case."""

    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def error(self, name: str, got: Tensor) -> float:
        """Relative error (L2) of a tensor against a stored array."""
        want = self.arrays[name].astype(np.float64).reshape(-1)
        values = got.detach().double().numpy().reshape(-1)[:: self.meta["strides"].get(name, 1)]
        return float(np.linalg.norm(values - want) / np.linalg.norm(want))

    def gradient_errors(self, module: nn.Module) -> np.ndarray:
        """Relative errors of the gradients' norms, for all parameters."""
        got = np.array(
            [0.0 if p.grad is None else float(p.grad.norm()) for p in module.parameters()]
        )
        want = np.maximum(self.arrays["grad_norm"], 0)  # -1 means no gradient
        floor = 1e-3 * np.median(want[want > 0])
        return np.abs(got - want) / np.maximum(want, floor)


def load(kind: str, name: str) -> Case:
    """Load a case of `models` or `modules`."""
    with np.load(FOLDER / kind / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return Case(json.loads(str(arrays.pop("meta"))), arrays)


def manifest(name: str) -> list[tuple[str, tuple[int, ...], str, bool]]:
    """A published network's state: name, shape, dtype and whether it learns, in order."""
    rows = json.loads((FOLDER / "manifests" / f"{name}.json").read_text())
    return [(row[0], tuple(row[1]), row[2], row[3]) for row in rows]


def state_of(module: nn.Module) -> list[tuple[str, tuple[int, ...], str, bool]]:
    """A module's state in the form of `manifest`."""
    learned = {name for name, _ in module.named_parameters()}
    return [
        (name, tuple(value.shape), str(value.dtype).removeprefix("torch."), name in learned)
        for name, value in module.state_dict().items()
    ]


def check_network(
    case: Case,
    network: nn.Module,
    usual: float = 2e-5,
    largest: float = 5e-3,
    output: float = 1e-5,
    most: float | None = None,
) -> None:
    """Check a network's output, its loss to 1e-6, and its gradient norms.

    Gradients of this loss are nearly signs: an output that differs by rounding flips a few of them.
    If signs nearly cancel, a norm may then differ by 1e-3, while most agree to 1e-5.

    Args:
        case: the stored numbers.
        network: a network of the case's configuration.
        usual: bound on the median error of the gradient norms.
        largest: bound on the largest error of the gradient norms.
        output: bound on the relative error of the output.
        most: bound on 95 % of the errors of the gradient norms; five times `usual` if left out.
    """
    fill(network)
    shape = case.meta["out_shape"]
    target = np.random.default_rng(case.meta["seed"] + 1).integers(0, 256, shape, dtype=np.uint8)
    sr = network(case.tensor("input"))
    assert list(sr.shape) == shape
    gt = torch.from_numpy(target.astype(np.float32) / np.float32(255))
    loss = torch.sqrt((sr - gt) ** 2 + 1e-12).mean()
    loss.backward()
    assert case.error("output", sr) < output
    assert abs(loss.item() / case.meta["loss"] - 1) < 1e-6
    errors = case.gradient_errors(network)
    assert np.median(errors) < usual
    assert np.quantile(errors, 0.95) < (most or 5 * usual)
    assert errors.max() < largest


def check_module(
    case: Case, module: nn.Module, outputs: list[Tensor], inputs: dict[str, Tensor]
) -> None:
    """Check a module's outputs and the gradients of its inputs to 1e-5, of parameters to 3e-5."""
    total = sum((out * case.tensor(f"cot_{i}")).sum() for i, out in enumerate(outputs))
    assert isinstance(total, Tensor)
    total.backward()
    for i, out in enumerate(outputs):
        assert case.error(f"out_{i}", out) < 1e-5
    for name, value in inputs.items():
        assert value.grad is not None
        assert case.error(f"gin_{name}", value.grad) < 1e-5
    if len(case.arrays["grad_norm"]):
        assert case.gradient_errors(module).max() < 3e-5
