"""What a network declares: settings, packaged sizes, and size rules of its input."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from fedvsr.errors import UserError
from fedvsr.section import NamedSection, OnlyWith, Section

if TYPE_CHECKING:
    from torch import Tensor

# What the backward pass computes again instead of keeping it.
Checkpointing = Literal["none", "attention", "blocks"]
# Fresh weights of a network.
Start = Annotated[
    Literal["published", "edges"],
    OnlyWith("weights", None),
    Field(
        description="Fresh weights: as published; or such that features begin as edges and the "
        "network as bilinear enlargement, which soon learns to sharpen."
    ),
]
# Frames, rows and columns.
Window = tuple[int, int, int]

# The published networks have up to 80 layers, 180 channels, 512 tokens a window and 0.3 GB.
_MAX_LAYERS, _MAX_CHANNELS, _MAX_TOKENS, _MAX_BYTES = 512, 1024, 4096, 2 << 30
RELEASED_FLOW = "spynet_sintel_final-3d2a1287.pth"
"""Name of the file of SpyNet weights that the published networks start from."""
_FLOW_CONV = re.compile(
    r"(?P<level>(?:.*\.)?basic_module\.\d\.basic_module\.)(?P<index>\d)(?P<conv>\.conv)?"
    r"(?P<kind>\.(?:weight|bias))"
)
# Largest side or number of frames.
MAX_SIZE = 65536


@dataclass(frozen=True)
class Size:
    """A packaged configuration of a network."""

    network: Mapping[str, object] = field(default_factory=dict)
    """Keys of the network's own section that differ from their defaults."""
    recipe: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Keys of the sections `local` and `evaluation`, for those that an experiment does not set."""


class AdapterConfig(Section):
    """What is trained instead of a network's own weights."""

    kind: Literal["lora", "prompt"] = Field(
        "lora",
        description="lora: a weight W becomes W + alpha / rank * B A (Hu et al. 2022). prompt: "
        "tokens whose keys and values join those of each attention window (Jia et al. 2022).",
    )
    rank: Annotated[int, OnlyWith("kind", "lora")] = Field(
        8, ge=1, le=256, description="lora: rows of A and columns of B."
    )
    alpha: Annotated[float, OnlyWith("kind", "lora")] = Field(
        16, gt=0, le=1e4, description="lora: factor of B A, divided by rank."
    )
    targets: Annotated[Literal["linear", "attention", "conv"], OnlyWith("kind", "lora")] = Field(
        "linear",
        description="lora: layers to adapt: linear; attention, the linear layers in the network's "
        "part attention; or conv, convolutions, for networks without linear layers.",
    )
    freeze_a: Annotated[bool, OnlyWith("kind", "lora")] = Field(
        False,
        description="lora: keep A as it was drawn and train B alone: the average of clients' "
        "updates is then exact (FFA-LoRA, Sun et al. 2024), and half as many values travel.",
    )
    tokens: Annotated[int, OnlyWith("kind", "prompt")] = Field(
        20, ge=1, le=512, description="prompt: tokens of each layer of window attention."
    )


class ModelConfig(NamedSection):
    """Settings that all networks have."""

    sizes: ClassVar[Mapping[str, Size]]
    """The packaged configurations, by the names that `size` may take."""

    size: str
    weights: str | None = Field(
        None, description="File of initial weights: a run's, or a released checkpoint."
    )
    adapter: AdapterConfig | None = Field(
        None,
        description="Train adapters of `weights`, which stay as they are (default: train all "
        "weights).",
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: object) -> object:
        """Fill in the keys of the packaged size that are not set."""
        if not isinstance(values, Mapping):
            return values
        size = cls.sizes.get(values.get("size", cls.model_fields["size"].default))
        # The field itself refuses an unknown size.
        return {**(size.network if size else {}), **values}

    def recipe(self) -> Mapping[str, Mapping[str, object]]:
        """Settings of training and scoring for this size, by section, for those not set."""
        return self.sizes[self.size].recipe

    def own_name(self, name: str) -> str | None:
        """The network's name for a tensor of a file, in which another trainer may have renamed it.

        None if the tensor belongs to the trainer and not to the network.
        """
        return name


class FlowModelConfig(ModelConfig):
    """Settings that networks which estimate optical flow have."""

    flow_weights: str | None = Field(
        None,
        description="File of SpyNet's released weights to start from, "
        f"{RELEASED_FLOW} (default: fresh weights).",
    )


def flow_name(name: str, wrapped: bool) -> str:
    """Name of a tensor of SpyNet in one of the two forms that released files have.

    Args:
        name: the tensor's name in either form. Other names are returned unchanged.
        wrapped: count a level's convolutions `0.conv` to `4.conv`, otherwise `0` to `8` in twos.
    """
    found = _FLOW_CONV.fullmatch(name)
    if found is None or (found["conv"] is not None) == wrapped:
        return name
    index = int(found["index"])
    if wrapped and index % 2 == 0:
        return f"{found['level']}{index // 2}.conv{found['kind']}"
    return name if wrapped else f"{found['level']}{2 * index}{found['kind']}"


@dataclass(frozen=True)
class Layers:
    """Equal layers of window attention, as far as their memory goes."""

    count: int
    channels: int
    heads: int
    window: Window
    mlp_ratio: float

    @property
    def tokens(self) -> int:
        """Tokens of a window."""
        return math.prod(self.window)

    @property
    def num_bytes(self) -> float:
        """Memory of weights and position biases in float32, and an index in int64 by token pair."""
        weights = (4 + 3 * self.mlp_ratio) * self.channels**2
        biases = self.heads * math.prod(2 * side - 1 for side in self.window)
        return self.count * (4 * (weights + biases) + 8 * self.tokens**2)


def require_buildable(layers: Sequence[Layers]) -> None:
    """Check that a network is none that only fills the memory.

    Raises:
        ValueError: it has too many layers, too large windows or too many weights.
    """
    if (count := sum(part.count for part in layers)) > _MAX_LAYERS:
        raise ValueError(f"{count} attention layers are too many, at most {_MAX_LAYERS}")
    if (channels := max(part.channels for part in layers)) > _MAX_CHANNELS:
        raise ValueError(f"{channels} channels are too many, at most {_MAX_CHANNELS}")
    if (tokens := max(part.tokens for part in layers)) > _MAX_TOKENS:
        raise ValueError(f"a window of {tokens} positions is too large, at most {_MAX_TOKENS}")
    if (size := sum(part.num_bytes for part in layers)) > _MAX_BYTES:
        raise ValueError(
            f"these channels, depths and windows make a network of {size / 2**30:.0f} GiB, at most "
            f"{_MAX_BYTES >> 30}"
        )


def parts_around(decoder: str, head: str, **others: str) -> dict[str, str]:
    """The parts of a network: `encoder`, `decoder`, `head`, and others.

    Args:
        decoder: regular expression of the beginning of names, for all from `ModelSpec.features` on.
            All before it is the encoder.
        head: the same for the last layer.
        others: regular expressions by the usual names: `flow`, `norm`, `attention`.
    """
    around = {"encoder": f"^(?!{decoder})", "decoder": f"^(?:{decoder})", "head": f"^(?:{head})"}
    return around | others


@dataclass(frozen=True)
class ModelSpec:
    """Size rules and loss constant of a network; sizes are of the low-resolution input."""

    scale: int
    """Enlargement of height and width."""
    charbonnier_eps: float
    """The constant inside the root of the network's published loss."""
    min_frames: int = 1
    frames_multiple: int = 1
    min_size: int = 1
    """Smallest height and width in pixels."""
    size_multiple: int = 1
    """Height and width must be multiples of this."""
    features: str | None = None
    """Module whose input, (N, C, H, W), algorithms contrast; None: not supported."""
    parts: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Named groups of parameters, which may overlap: by name, a regular expression that is searched
    in the parameters' names. See `parts_around`."""

    def in_part(self, part: str, param: str) -> bool:
        """Whether the parameter of a name is in a part of the network."""
        return re.search(self.parts[part], param) is not None

    def require_sample(self, num_frames: int, size: int, name: str) -> None:
        """Check the length and crop of training samples, `size` in low-resolution pixels.

        Inference needs no check, because it pads and crops.

        Raises:
            UserError: the network cannot take such samples.
        """
        if num_frames < self.min_frames or num_frames % self.frames_multiple:
            raise UserError(
                f"local.num_frames = {num_frames} does not suit {name}: it needs at least "
                f"{self.min_frames} frames, in multiples of {self.frames_multiple}"
            )
        if size < self.min_size or size % self.size_multiple:
            raise UserError(
                f"local.crop = {size * self.scale} gives {size} low-resolution pixels, which do "
                f"not suit {name}: it needs at least {self.min_size}, in multiples of "
                f"{self.size_multiple}"
            )

    def require_clip(self, lq_BTCHW: Tensor, name: str) -> None:
        """Check the input of a network: low-resolution RGB clips `(B, T, 3, H, W)`.

        Raises:
            ValueError: the network `name` cannot take these clips.
        """
        if lq_BTCHW.dim() != 5 or lq_BTCHW.shape[2] != 3:
            raise ValueError(f"{name} takes (B, T, 3, H, W), not {tuple(lq_BTCHW.shape)}")
        frames, _, height, width = lq_BTCHW.shape[1:]
        if frames < self.min_frames or frames % self.frames_multiple:
            raise ValueError(
                f"{name} takes at least {self.min_frames} frames, in multiples of "
                f"{self.frames_multiple}, not {frames}"
            )
        sides = (height, width)
        if min(sides) < self.min_size or any(side % self.size_multiple for side in sides):
            raise ValueError(
                f"{name} takes frames of at least {self.min_size} x {self.min_size} pixels, in "
                f"multiples of {self.size_multiple}, not {height} x {width}"
            )
