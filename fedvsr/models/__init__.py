"""The networks: one module each, whose name is the configuration's `model.name`.

A network's module holds three things. `Config` is its section; `Config.sizes` are the packaged
configurations, each with its training recipe. `spec(config)` gives the size rules. `Model(config)`
maps low-resolution clips `(B, T, 3, H, W)` in [0, 1] to `(B, T, 3, scale * H, scale * W)`, keeps
its size rules as `spec`, and lists in `compiled_layers` the kinds of layers to compile (empty: the
whole network).

A package may keep `Model` in a submodule `network`. Its settings can then be read without importing
torch, which takes over a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from fedvsr.errors import FileError, UserError
from fedvsr.lookup import load, names
from fedvsr.models.spec import AdapterConfig, FlowModelConfig, ModelConfig
from fedvsr.plugins import SHA256, Kind, find_loaded, module_of

if TYPE_CHECKING:
    from torch import Tensor, nn

KIND = Kind("model", __name__, __name__, {"Config": ModelConfig}, ("spec",), ("Model",))
"""What a network that is a plug-in must have."""


def build(name: str, **config: object) -> nn.Module:
    """Build the network `name` from its configuration keys.

    Its weights are fresh, except those that the keys `weights` and `flow_weights` name.

    Raises:
        UserError: the network is unknown, or a file does not fit it.
        pydantic.ValidationError: a key is unknown, or its value is out of bounds.
    """
    settings = _section(name, config)
    network = build_fresh(settings)
    load_start(network, settings)
    return network


def build_fresh(config: ModelConfig) -> nn.Module:
    """Build the network of a section with fresh weights, without reading files.

    With `adapter`, only the adapters' parameters require gradients.
    """
    module = module_of(KIND, config)
    if not hasattr(module, "Model"):
        module = import_module(f"{module.__name__}.network")
    network: nn.Module = module.Model(config)
    if config.adapter is not None:
        _adapt(network, config.adapter, config.name)
    return network


def _adapt(network: nn.Module, config: AdapterConfig, name: str) -> None:
    """Freeze a network, and add what is trained instead of its weights."""
    if config.kind == "prompt":
        from fedvsr.models._prompts import add_prompts

        add_prompts(network, config, name)
    else:
        from fedvsr.models._adapter import adapt

        adapt(network, config, name)


def load_start(network: nn.Module, config: ModelConfig) -> None:
    """Load the initial weights that the section names, if any.

    A file without adapters leaves the network's adapters fresh.

    Raises:
        UserError: a file cannot be read, or does not fit the network.
    """
    from fedvsr.models._adapter import adapter_names
    from fedvsr.models._checkpoint import load_tensors, read_tensors
    from fedvsr.models._flow import load_flow_weights
    from fedvsr.models._prompts import prompt_names

    if config.weights is not None:
        path = Path(config.weights).expanduser()
        tensors = _named(config, read_tensors(path)[0], path)
        own = (*adapter_names(network), *prompt_names(network))
        if not own and any(name.endswith(".prompt") for name in tensors):
            raise FileError(path, "has prompts: set model.adapter.kind=prompt")
        if not own and any(name.endswith(".lora_a") for name in tensors):
            raise FileError(
                path,
                "has adapters, and model.adapter is not set: make a plain network of it by "
                f"`fedvsr export {path} --to torch --merge`, or set model.adapter",
            )
        load_tensors(network, tensors, path, optional=own)
    if isinstance(config, FlowModelConfig) and config.flow_weights is not None:
        load_flow_weights(network, Path(config.flow_weights).expanduser())


def flow_from_scratch(config: ModelConfig) -> bool:
    """Whether a network estimates optical flow and starts without weights for it."""
    if not isinstance(config, FlowModelConfig):
        return False
    return config.weights is None and config.flow_weights is None


def load_checkpoint(path: str | Path, config: ModelConfig | None = None) -> nn.Module:
    """Load a trained network, in evaluation mode.

    It reads the `model.safetensors` of a run, and files of `torch.save`: bare, or with the wrappers
    and prefixes that `fedvsr.models._checkpoint.read_tensors` knows. A file of `torch.save` names
    no configuration; the packaged configuration with the same tensors is used, so released
    checkpoints of VRT, RVRT, IART and BasicVSR++ need only the path.

    Args:
        path: the file.
        config: the network's section, for a checkpoint whose configuration is not packaged.

    Raises:
        UserError: the file cannot be read, or fits no known network. The message names the nearest
            network and the first tensor that is missing, of another shape, or unexpected.
    """
    from fedvsr.models._checkpoint import first_difference, load_tensors, read_tensors

    path = Path(path)
    tensors, settings = read_tensors(path)
    if config is None and settings:
        config = _recorded(settings, path)
    if config is None:
        config = _identify(tensors, path)
    tensors = _named(config, tensors, path)
    # Before the network takes memory, because the settings may come from a file.
    if difference := first_difference(_state_of(config), tensors):
        raise FileError(path, difference)
    network = build_fresh(config)
    load_tensors(network, tensors, path)
    return network.eval()


COLUMNS = ("network", "sizes", "enlarges", "frames", "pixels", "can be contrasted")
"""Columns of `rows`; `frames` and `pixels` are those that a training sample needs at least."""


def rows() -> list[tuple[str, ...]]:
    """What each network takes, in `COLUMNS`, those of other installed packages included."""
    table = list[tuple[str, ...]]()
    for name, module in KIND.modules().items():
        config = module.Config()
        rules = module.spec(config)
        features = "yes" if rules.features else "no"
        least = str(rules.min_frames), str(rules.min_size)
        table.append((name, ", ".join(config.sizes), f"x{rules.scale}", *least, features))
    return table


PART_COLUMNS = ("network", "size", "part", "parameters", "of all")
"""Columns of `part_rows`."""


def part_rows() -> list[tuple[str, ...]]:
    """The parts of each network by size, in `PART_COLUMNS`. Parts may overlap."""
    from fedvsr.params import ParamTable

    table = list[tuple[str, ...]]()
    for name, module in KIND.modules().items():
        for size in module.Config.sizes:
            config = module.Config(size=size)
            params, rules = ParamTable.of(on_meta(config)), module.spec(config)
            counts = {"": params.size}
            for part in rules.parts:
                of_part = zip(params.names, params.shapes, strict=True)
                counts[part] = sum(math.prod(s) for n, s in of_part if rules.in_part(part, n))
            for part, count in counts.items():
                row = (name, size, part or "all", f"{count:,}", f"{count / params.size:.1%}")
                table.append(row)
    return table


def named(name: str, size: str | None = None) -> ModelConfig:
    """A packaged configuration of a network; by default that of `size`'s default.

    Raises:
        UserError: there is no such network or size.
    """
    config = load(__name__, name).Config
    if size is not None and size not in config.sizes:
        raise UserError(f"{name} has no size {size!r}; there are: {', '.join(config.sizes)}")
    section: ModelConfig = config() if size is None else config(size=size)
    return section


def packaged(name: str) -> Iterator[ModelConfig]:
    """The packaged configurations of a network."""
    module = load(__name__, name)
    for size in module.Config.sizes:
        yield module.Config(size=size)


def _section(name: str, settings: Mapping[str, object]) -> ModelConfig:
    section: ModelConfig
    if SHA256 in settings:
        # Whoever wrote them must not choose what is executed.
        plugin = find_loaded(KIND, settings)
        if plugin is None:
            raise UserError(
                f"{name} is a plug-in; give the run's folder, or the network's file by --model"
            )
        section = plugin.module().Config(**{k: v for k, v in settings.items() if k != SHA256})
    else:
        section = load(__name__, name).Config(**settings)
    return section


def _recorded(settings: Mapping[str, object], path: Path) -> ModelConfig:
    """The section that a file holds, which anybody may have written."""
    try:
        return _section(str(settings.get("name")), settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = "".join(f"{part}: " for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise FileError(path, f"has settings of a network that are refused: {key}{what}") from None
    except (UserError, TypeError, ValueError) as error:
        raise FileError(path, f"has settings of a network that are refused: {error}") from None


def _identify(tensors: dict[str, Tensor], path: Path) -> ModelConfig:
    """The packaged configuration with the same tensors."""
    from fedvsr.models._checkpoint import first_difference

    nearest: tuple[int, str, str] | None = None
    for name in names(__name__):
        for config in packaged(name):
            own, named = _state_of(config), _named(config, tensors, path)
            difference = first_difference(own, named)
            if difference is None:
                return config
            fitting = sum(n in own and own[n].shape == t.shape for n, t in named.items())
            if nearest is None or fitting > nearest[0]:
                nearest = (fitting, f"{name} ({config.size})", difference)
    assert nearest is not None
    if nearest[0] == 0:
        raise UserError(
            f"{path} is not a checkpoint of a known network ({', '.join(names(__name__))})"
        )
    raise UserError(
        f"{path} fits no packaged network: compared with the nearest, {nearest[1]}, it {nearest[2]}"
    )


def _named(config: ModelConfig, tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors of a file under the network's own names, without those of its trainer."""
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = config.own_name(name)
        if own in named:
            raise FileError(path, f"holds {own} twice, once as {name}")
        if own is not None:
            named[own] = tensor
    return named


@lru_cache(maxsize=32)
def _state_of(config: ModelConfig) -> dict[str, Tensor]:
    return on_meta(config).state_dict()


def on_meta(config: ModelConfig) -> nn.Module:
    """A network of which only names and shapes are needed: no memory, no random draws."""
    import torch

    with torch.device("meta"):
        return build_fresh(config)
