"""The command `new`: a commented start for an algorithm or a network, with its test."""

from __future__ import annotations

import keyword
from pathlib import Path
from typing import Annotated

import typer

from fedvsr.cli.common import say
from fedvsr.errors import UserError

app = typer.Typer(help="Write the start of an algorithm or network of your own.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of it, and of its file.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the files.")]

_METHOD = '''"""NAME: what the method does, in one sentence, and where it is published."""

from __future__ import annotations

from typing import Literal

import numpy as np
from fedvsr.algorithms.base import AlgorithmConfig, FedAvg
from fedvsr.messages import Round, Vectors
from pydantic import Field


class Config(AlgorithmConfig):
    """The settings that `algorithm:` may have; those of all methods are inherited."""

    # Must be the name of this file.
    name: Literal["NAME"] = "NAME"
    server_lr: float = Field(0.9, gt=0, le=2, description="Share of the mean update that is taken.")


class Algorithm(FedAvg):
    """FedAvg, but the server goes only a part of the way: w + server_lr * (mean - w).

    Every hook that is not overridden is FedAvg's. See `FedAvg` for all of them: what a client's
    loss is, what it sends and remembers, how the server weighs, sums and steps.
    """

    source = "Author et al., Venue, Year"

    config: Config

    def server_step(self, server: Vectors, aggregated: Vectors, round_info: Round) -> Vectors:
        """The server's next vectors. Arguments are read-only: return new ones."""
        update = aggregated["params"] - server["params"]
        # Vectors are float32; a Python float would not change that, a float64 would.
        step = np.float32(self.config.server_lr)
        return {**server, "params": server["params"] + step * update}
'''
_METHOD_TEST = '''"""Numbers of NAME that can be checked by hand."""

from __future__ import annotations

import numpy as np
from fedvsr.messages import Round

from NAME import Algorithm, Config


def test_the_server_goes_a_part_of_the_way() -> None:
    server = {"params": np.array([0.0, 2.0], np.float32)}
    mean = {"params": np.array([4.0, 2.0], np.float32)}
    round_info = Round(1, 10, num_clients=2, num_sampled=2, tensors=(slice(0, 2),))
    after = Algorithm(Config(server_lr=0.5)).server_step(server, mean, round_info)
    # Half of the way from 0 to 4; the second one is there already.
    np.testing.assert_allclose(after["params"], [2.0, 2.0])
'''
_NETWORK = '''"""NAME: what the network does, in one sentence, and where it is published."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

import torch.nn.functional as F
from fedvsr.models.spec import ModelConfig, ModelSpec, Size
from fedvsr.resize import upscale_planes
from pydantic import Field
from torch import Tensor, nn

# A size may also have a recipe: settings of `local` and `evaluation` for those not set.
_RECIPE = {"local": {"steps": 20, "batch_size": 4, "num_frames": 3, "crop": 96, "lr": 1e-3}}


class Config(ModelConfig):
    """The settings that `model:` may have; they alone decide the architecture."""

    sizes: ClassVar[dict[str, Size]] = {"demo": Size(recipe=_RECIPE)}

    # Must be the name of this file.
    name: Literal["NAME"] = "NAME"
    size: Literal["demo"] = Field("demo", description="Packaged configuration.")
    scale: int = Field(4, ge=2, le=8, description="Enlargement of height and width.")
    channels: int = Field(16, ge=4, le=128, description="Feature channels.")
    layers: int = Field(6, ge=1, le=20, description="Convolutions before the one to pixels.")


def spec(config: Config) -> ModelSpec:
    """Size rules, and the module whose input methods such as MOON compare."""
    return ModelSpec(scale=config.scale, charbonnier_eps=1e-9, features="to_pixels")


class Model(nn.Module):
    """Low-resolution clips `(B, T, 3, H, W)` in [0, 1] to `(B, T, 3, scale * H, scale * W)`."""

    # Kinds of layers that `local.compile` compiles; none: the whole network.
    compiled_layers = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.spec = spec(config)
        # Only parameters travel: no batch norm, whose buffers change.
        widths = [3] + [config.channels] * config.layers
        self.body = nn.ModuleList(
            nn.Conv3d(inputs, outputs, kernel_size=3, padding=1)
            for inputs, outputs in pairwise(widths)
        )
        self.to_pixels = nn.Conv2d(config.channels, 3 * config.scale**2, kernel_size=3, padding=1)

    def forward(self, lq_BTCHW: Tensor) -> Tensor:
        """Super-resolve clips: bicubic, and what the network adds to it."""
        features = (lq_BTCHW - 0.5).transpose(1, 2)
        for layer in self.body:
            features = F.leaky_relu(layer(features), 0.1)
        # One map per frame: (B * T, C, H, W).
        residual = self.to_pixels(features.transpose(1, 2).flatten(0, 1))
        bicubic = upscale_planes(lq_BTCHW.flatten(0, 1), self.spec.scale)
        sr = bicubic + F.pixel_shuffle(residual, self.spec.scale)
        return sr.unflatten(0, lq_BTCHW.shape[:2])
'''
_NETWORK_TEST = '''"""What only NAME does."""

from __future__ import annotations

import torch

from NAME import Config, Model


def test_a_frame_depends_on_its_neighbours() -> None:
    network, lq = Model(Config(channels=8)), torch.rand(1, 3, 3, 8, 8)
    other = lq.clone()
    other[:, 0] = 0
    assert not torch.equal(network(lq)[:, 1], network(other)[:, 1])
'''


@app.command()
def algorithm(name: NameArgument, out: OutOption = Path()) -> None:
    """Write NAME.py, a federated method, and test_NAME.py."""
    path = _write(name, out, "fedvsr.algorithms", _METHOD, _METHOD_TEST)
    say(f"try it: fedvsr run demo --set algorithm.name={path}")


@app.command()
def network(name: NameArgument, out: OutOption = Path()) -> None:
    """Write NAME.py, a super-resolution network, and test_NAME.py."""
    path = _write(name, out, "fedvsr.models", _NETWORK, _NETWORK_TEST)
    say(f"try it: fedvsr run demo --set model.name={path}")


def _write(name: str, out: Path, package: str, text: str, test: str) -> str:
    """Write both files, and return how to name the first in a configuration.

    Raises:
        UserError: the name cannot be used, or a file exists already.
    """
    from fedvsr.lookup import names

    if not name.isidentifier() or keyword.iskeyword(name) or not name.isascii():
        raise UserError(f"{name} cannot be a module's name: give letters, digits and _")
    if name in names(package):
        raise UserError(f"{name} is the name of a packaged one; give another")
    files = {out / f"{name}.py": text, out / f"test_{name}.py": test}
    for path in files:
        if path.exists():
            raise UserError(f"{path} exists already, and is left as it is; give another name")
    out.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        with path.open("x", encoding="utf-8") as file:
            file.write(content.replace("NAME", name))
    plugin, tested = files
    say(f"{plugin}: the start of it, with comments; change it")
    say(f"{tested}: its test (pytest {tested})")
    say(f"check it: fedvsr check {plugin}")
    return str(plugin if plugin.is_absolute() or out != Path() else f"./{plugin}")
