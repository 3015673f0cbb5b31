"""Writes a trained network for other programs: safetensors, PyTorch's own format, or ONNX."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedvsr.errors import UserError
from fedvsr.files import replacing
from fedvsr.inference.tiling import padded
from fedvsr.inference.trained import Trained
from fedvsr.models._adapter import adapter_names, merge
from fedvsr.models._prompts import prompt_names
from fedvsr.models.origin import KEY, joined
from fedvsr.models.spec import ModelSpec
from fedvsr.training.checkpoint import save_model

Format = Literal["safetensors", "torch", "onnx"]
SUFFIXES: dict[Format, str] = {"safetensors": ".safetensors", "torch": ".pth", "onnx": ".onnx"}
# A tenth of an 8-bit step; values are in [0, 1].
_TOLERANCE = 0.1 / 255
# Default frames and side of an ONNX file's input, before padding to the network's size rules.
_FRAMES, _SIDE = 5, 64


@dataclass(frozen=True)
class Shape:
    """Size of the one input that an ONNX file takes, in low-resolution pixels."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


def merged(trained: Trained) -> Trained:
    """Make a plain network of one with adapters, in its place; the outputs stay the same.

    Raises:
        UserError: the network has no adapters.
    """
    if prompt_names(trained.network):
        raise UserError(
            f"{trained.name} has prompts, which no weights can stand for; leave --merge out"
        )
    if not adapter_names(trained.network):
        raise UserError(f"{trained.name} has no adapters to merge; leave --merge out")
    merge(trained.network)
    config = trained.config
    if config is not None:
        plain = config.model.model_copy(update={"adapter": None})
        config = config.model_copy(update={"model": plain})
    return replace(trained, config=config)


def export_tensors(trained: Trained, to: Format, path: Path) -> None:
    """Write the network's tensors by name.

    `safetensors` includes the configuration, as a run's `model.safetensors` does. `torch` writes
    `{"params": state_dict}`, as published checkpoints of VRT and RVRT do; it loads with
    `weights_only=True`. Both name in `weights_source` what the network was trained from.

    Raises:
        UserError: `to` is safetensors, and the network is a file without a configuration.
    """
    if to == "safetensors":
        if trained.config is None:
            raise UserError(
                f"--to safetensors needs the configuration, and {trained.name} is a file, not a "
                "run; give the run, or --to torch"
            )
        save_model(path, trained.network, trained.config.model, trained.weights_source)
        return
    state = {name: tensor.detach().cpu() for name, tensor in trained.network.state_dict().items()}
    with replacing(path) as aside:
        torch.save({"params": state, KEY: list(trained.weights_source)}, aside)


def default_shape(spec: ModelSpec) -> Shape:
    """A small input that suits the network."""
    return Shape(*padded(spec, (_FRAMES, _SIDE, _SIDE)))


def export_onnx(trained: Trained, path: Path, shape: Shape) -> float:
    """Write the network as ONNX for one shape of input, and compare it with PyTorch.

    The input `lq` is `(1, T, 3, H, W)`, float32 in [0, 1]; the output `sr` is the enlarged clip.

    Returns:
        The largest difference from PyTorch's output on a random input, as a part of the value
        range.

    Raises:
        UserError: a package is missing, the network does not take the shape, it has an operator
            that ONNX or onnxruntime lacks, or the outputs differ.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs {', '.join(missing)}: pip install 'fedvsr[onnx]'")
    network = trained.network.cpu().eval()
    # For other programs, adapters are of no use.
    merge(network)
    size = 1, shape.frames, 3, shape.height, shape.width
    lq_BTCHW = torch.rand(size, generator=torch.Generator().manual_seed(0))
    try:
        trained.spec.require_clip(lq_BTCHW, trained.name)
    except ValueError as error:
        raise UserError(f"--input {shape}: {error}") from None
    with torch.no_grad():
        sr_BTCHW = network(lq_BTCHW)
    with replacing(path) as aside:
        _write(network, lq_BTCHW, aside, trained.name)
        _add_source(aside, trained.weights_source)
        difference = _difference(aside, lq_BTCHW, sr_BTCHW, trained.name)
        if not difference <= _TOLERANCE:
            raise UserError(
                f"{trained.name} as ONNX differs from PyTorch by {difference:.2g} of the value "
                f"range, more than {_TOLERANCE:.2g}; export to safetensors or torch"
            )
    return difference


def _write(network: torch.nn.Module, lq_BTCHW: Tensor, path: Path, name: str) -> None:
    with warnings.catch_warnings():
        # The exporter warns of its own internals.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                network,
                (lq_BTCHW,),
                str(path),
                input_names=["lq"],
                output_names=["sr"],
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as error:
            # Any exception means that the exporter cannot express the network.
            raise UserError(
                f"{name} cannot be written as ONNX ({_reason(error)}); export to safetensors or "
                "torch"
            ) from error


def _add_source(path: Path, source: Sequence[str]) -> None:
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {KEY: joined(source) or ""})
    onnx.save(model, str(path))


def _difference(path: Path, lq_BTCHW: Tensor, sr_BTCHW: Tensor, name: str) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = min(os.cpu_count() or 1, 8)
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        (output,) = session.run(None, {"lq": lq_BTCHW.numpy()})
    except Exception as error:
        # onnxruntime's exceptions have no other base.
        raise UserError(
            f"{name} is written as ONNX, but onnxruntime cannot run it ({_reason(error)}); export "
            "to safetensors or torch"
        ) from error
    return float(np.abs(output - sr_BTCHW.numpy()).max())


def _reason(error: BaseException) -> str:
    """First line of the innermost cause: the exporter wraps an exception several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text[:200]}"
