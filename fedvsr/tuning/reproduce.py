"""The packaged sweeps of the paper's experiments: at the paper's size or a small one, on any data.

A packaged sweep names its data `stores/reds` and so on. `planned` puts a user's folder in place of
`stores`, and `missing` names what the sweep needs and this machine does not have.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from fedvsr.config import ExperimentConfig
from fedvsr.data.store import open_store
from fedvsr.errors import UserError
from fedvsr.lookup import did_you_mean
from fedvsr.metrics import OPTIONAL
from fedvsr.models.spec import RELEASED_FLOW
from fedvsr.settings import parse_override
from fedvsr.tuning.config import SweepConfig
from fedvsr.tuning.space import flat
from fedvsr.tuning.sweep import Trial, expand, load_sweep

Size = Literal["paper", "demo"]
# The sweeps without data sets, which are examples.
_NOT_OF_THE_PAPER = ("demo_basicvsrpp", "demo_networks", "personal", "personal_iart", "smoke")
_STORES, _FLOW = "stores/", "model.flow_weights"
# How each store is made, but for its --out.
_COMMANDS = {
    "reds": "reds --source REDS",
    "reds4": "reds --source REDS --clip reds4",
    "vid4": "vid4 --source VID4",
    "kinetics": "kinetics --source KINETICS --annotations KINETICS/train.csv",
}
# The paper's federation in small: a tenth of the clients, small networks, few steps.
_FEWER_CLIENTS = 10
_DEMO: Mapping[str, object] = {
    "model.size": "demo",
    "data.num_clients": 4,
    "data.clips_per_client": 1,
    "federation.num_rounds": 2,
    "federation.clients_per_round": 2,
    "local.steps": 2,
    "evaluation.every_rounds": 2,
    "evaluation.crop": None,
    "evaluation.metrics": [],
}


@dataclass(frozen=True)
class Plan:
    """A sweep that is ready to run, and its trials."""

    sweep: SweepConfig
    trials: Sequence[Trial]
    size: Size


@dataclass(frozen=True)
class Missing:
    """Something that a sweep needs and this machine does not have."""

    what: str
    remedy: str
    """The command that makes it, or where to get it."""


def names() -> list[str]:
    """The sweeps that can be reproduced, by name."""
    files = (Path(file.name) for file in _folder().iterdir())
    stems = (file.stem for file in files if file.suffix == ".yaml")
    return sorted(stem for stem in stems if stem not in _NOT_OF_THE_PAPER)


def descriptions() -> dict[str, str]:
    """The sweeps that can be reproduced, each in a line."""
    lines = dict[str, str]()
    for name in names():
        with resources.as_file(_folder() / f"{name}.yaml") as path:
            lines[name] = load_sweep(path).description
    return lines


def planned(name: str, data: Path, size: Size = "paper", overrides: Iterable[str] = ()) -> Plan:
    """A packaged sweep on the stores in a folder.

    Args:
        name: one of `names()`.
        data: the folder of the stores `reds`, `reds4`, `vid4` and `kinetics`.
        size: `demo` shrinks networks, clients, rounds and steps, and runs without a GPU.
        overrides: settings of every trial, such as `model.flow_weights=spynet.pth`.

    Raises:
        UserError: there is no such sweep, or a trial's settings are refused.
    """
    if name not in names():
        raise UserError(
            f"{name} is not one of the paper's sweeps{did_you_mean(name, names())} (there are: "
            f"{', '.join(names())})"
        )
    changes = list(overrides)
    with resources.as_file(_folder() / f"{name}.yaml") as path:
        sweep = load_sweep(path, changes)
    own = {key for text in changes for key in flat(dict([parse_override(text)]))}
    sweep = _stored_in(sweep, data.expanduser().resolve(), own)
    sweep = _shrunk(sweep, own) if size == "demo" else sweep
    return Plan(sweep, expand(sweep), size)


def missing(plan: Plan, has_gpus: bool) -> list[Missing]:
    """What the sweep needs and this machine does not have, each with what makes it.

    Args:
        plan: the sweep.
        has_gpus: whether there are GPUs where its trials would run.

    Raises:
        UserError: a store is damaged.
    """
    configs = [trial.config for trial in plan.trials]
    lacking = [*_missing_stores(configs), *_missing_flow(configs), *_missing_metrics(configs)]
    if plan.size == "paper" and not has_gpus:
        remedy = (
            "on a machine of a cluster with GPUs: --address auto; from elsewhere: --submit "
            "http://HEAD:8265"
        )
        lacking.append(Missing("a GPU", remedy))
    return lacking


def _folder() -> Any:
    return resources.files("fedvsr") / "sweeps"


def _missing_stores(configs: Iterable[ExperimentConfig]) -> Iterator[Missing]:
    needed = (path for config in configs for path in (*config.data.train, *config.data.test))
    for path in dict.fromkeys(needed):
        folder = Path(path)
        if open_store(folder) is None:
            how = _COMMANDS.get(folder.name, "folder --source DIR")
            yield Missing(path, f"fedvsr data prepare {how} --out {shlex.quote(path)}")


def _missing_flow(configs: Iterable[ExperimentConfig]) -> Iterator[Missing]:
    paths = (path for config in configs for path in config.files().get(_FLOW, []))
    for path in dict.fromkeys(paths):
        if not Path(path).expanduser().is_file():
            yield Missing(
                path,
                f"SpyNet's released weights (docs/how-to/prepare-data.md, Flow weights): "
                f"mv {RELEASED_FLOW} {shlex.quote(path)}",
            )


def _missing_metrics(configs: Iterable[ExperimentConfig]) -> Iterator[Missing]:
    for name in dict.fromkeys(name for config in configs for name in config.evaluation.metrics):
        package = OPTIONAL[name].package
        if find_spec(package) is None:
            yield Missing(f"the package {package}, for {name}", "pip install 'fedvsr[metrics]'")


def _stored_in(sweep: SweepConfig, data: Path, kept: Collection[str]) -> SweepConfig:
    """The sweep with its stores and flow weights in a folder instead of `stores`.

    Args:
        sweep: the sweep.
        data: the folder.
        kept: settings that stay as they are.
    """

    def moved(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: moved(own) for key, own in value.items()}
        if isinstance(value, list):
            return [moved(own) for own in value]
        if isinstance(value, str) and value.startswith(_STORES):
            return str(data / value.removeprefix(_STORES))
        return value

    # The presets name the flow weights, so the sweep itself has no path to change.
    weights = {} if _FLOW in kept else {_FLOW: str(data / RELEASED_FLOW)}
    changed: dict[str, Any] = moved(sweep.model_dump())
    return SweepConfig.model_validate(changed | {"set": flat(changed["set"]) | weights})


def _shrunk(sweep: SweepConfig, kept: Collection[str]) -> SweepConfig:
    """The sweep in small; numbers of clients that it compares all shrink by one factor.

    Args:
        sweep: the sweep.
        kept: settings that stay as they are.
    """
    # A number of steps would replace the epochs that a sweep compares.
    steps = None if "local.epochs" in sweep.swept else _DEMO["local.steps"]
    fixed = {*kept, *sweep.swept, *sweep.constraints}
    demo = {k: v for k, v in {**_DEMO, "local.steps": steps}.items() if k not in fixed}
    space = {key: d.model_dump(exclude_none=True) for key, d in sweep.space.items()}
    for dimension in space.values():
        for name, case in dimension.get("cases", {}).items():
            own = flat(case)
            if "data.num_clients" in own:
                own["data.num_clients"] = int(str(own["data.num_clients"])) // _FEWER_CLIENTS
            dimension["cases"][name] = own
    changes = {
        "name": f"{sweep.name}-demo",
        "set": flat(sweep.set) | demo,
        "space": space,
        "executor": "serial",
        "estimate": None,
    }
    return SweepConfig.model_validate(sweep.model_dump() | changes)
