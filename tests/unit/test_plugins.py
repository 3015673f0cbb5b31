"""Algorithms and networks of one's own: found, refused in one line, kept, pickled."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from fedvsr import models, plugins
from fedvsr.algorithms import build
from fedvsr.api import load_run
from fedvsr.config import LOADED_ONLY, ExperimentConfig, load_config
from fedvsr.errors import UserError
from fedvsr.runs.run import create_run, find_run, stored_config
from tests.integration.running import run_serially

METHOD = '''
from typing import Literal

from pydantic import Field

from fedvsr.algorithms.base import AlgorithmConfig, FedAvg


class Config(AlgorithmConfig):
    """{note}"""

    name: Literal["{name}"] = "{name}"
    pace: float = Field(0.5, gt=0)


class Algorithm(FedAvg):
    """The mean, as it is."""

    source = "nowhere"
    config: Config
'''
NETWORK = '''
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from fedvsr.models.spec import ModelConfig, ModelSpec, Size
from fedvsr.resize import upscale_planes


class Config(ModelConfig):
    """One layer."""

    sizes: ClassVar[dict[str, Size]] = {"demo": Size()}

    name: Literal["plain"] = "plain"
    size: Literal["demo"] = "demo"
    width: int = Field(3, ge=1)


def spec(config):
    return ModelSpec(scale=4, charbonnier_eps=1e-9, features="layer")


class Model(nn.Module):
    compiled_layers = ()

    def __init__(self, config):
        super().__init__()
        self.spec = spec(config)
        self.layer = nn.Conv2d(3, 3, config.width, padding="same")

    def forward(self, lq):
        flat = upscale_planes(self.layer(lq.flatten(0, 1)), 4)
        return flat.view(*lq.shape[:3], 4 * lq.shape[3], 4 * lq.shape[4])
'''


def write(folder: Path, name: str, note: str = "", text: str = METHOD) -> Path:
    path = folder / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("{name}", name).replace("{note}", note))
    return path


def test_a_file_is_named_relative_to_the_configuration_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a", "mean1")
    write(tmp_path / "b", "mean2")
    (tmp_path / "a" / "base.yaml").write_text("extends: demo\nalgorithm: {name: ./mean1.py}\n")
    (tmp_path / "b" / "own.yaml").write_text(
        "extends: ../a/base.yaml\nalgorithm: {pace: 2}\nmodel: {channels: 8}\n"
    )
    monkeypatch.chdir(tmp_path / "b")
    config = load_config("own.yaml")
    assert (config.algorithm.name, config.algorithm.model_dump()["pace"]) == ("mean1", 2)
    (plugin,) = config.plugins()
    assert plugin.reference == str(tmp_path / "a" / "mean1.py")
    # An override is relative to the working directory.
    assert load_config("own.yaml", ["algorithm.name=mean2.py"]).algorithm.name == "mean2"
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml())
    assert load_config(str(again)).config_hash() == config.config_hash()


def test_content_counts_for_the_hash_and_place_does_not(tmp_path: Path) -> None:
    def config_hash(folder: str, note: str) -> str:
        path = write(tmp_path / folder, "mean", note)
        return load_config("demo", [f"algorithm.name={path}"]).config_hash()

    assert config_hash("a", "x") == config_hash("b", "x") != config_hash("c", "y")


BROKEN = {
    "has no class Algorithm; give it one": METHOD.partition("class Algorithm")[0],
    "has no class Config; give it one": "class Algorithm: pass\n",
    "Algorithm must inherit from FedAvg of fedvsr.algorithms.base": METHOD.replace(
        "FedAvg):", "object):"
    ),
    "Config.name is 'other' by default, and must be 'mine'": METHOD.replace("{name}", "other"),
    "line 3 is not Python: ": "import os\n\ndef broken(:\n",
    "line 2: ZeroDivisionError: division by zero": "\nx = 1 / 0\n",
    "line 1: ModuleNotFoundError: No module named 'beside'": "import beside\n",
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_file_that_is_no_algorithm_is_refused_in_one_line(message: str, tmp_path: Path) -> None:
    path = write(tmp_path, "mine", text=BROKEN[message])
    with pytest.raises(UserError) as refused:
        load_config("demo", [f"algorithm.name={path}"])
    text = str(refused.value)
    assert text.startswith(f"algorithm.name = {path}")
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("algorithm.name=./gone.py", "algorithm.name: there is no file .*/gone.py; correct"),
        ("algorithm.name={mean}", "algorithm.pace = -1: input should be greater than 0"),
        ("algorithm.name={fedavg}", "has the name of a packaged algorithm; rename it"),
        ("algorithm.name=nowhere.mean", "Python finds no module nowhere on "),
        ("model.name={mean}", "Config must inherit from ModelConfig of fedvsr.models.spec"),
    ],
)
def test_what_cannot_be_used_is_refused(setting: str, message: str, tmp_path: Path) -> None:
    known = {name: write(tmp_path, name) for name in ("mean", "fedavg")}
    with pytest.raises(UserError, match=message):
        load_config("demo", [setting.format(**known), "algorithm.pace=-1"])


def forget(name: str) -> None:
    """Make this process one that has not loaded a plug-in."""
    for module in [m for m in sys.modules if m.startswith("fedvsr_plugin_") and f"_{name}_" in m]:
        del sys.modules[module]
    for key in [key for key in plugins._loaded if key[1] == name]:
        del plugins._loaded[key]


def test_another_process_gets_the_source_with_a_section(tmp_path: Path) -> None:
    """Client actors unpickle what the driver pickles, on nodes without the file."""
    method = write(tmp_path, "mean")
    config = load_config("demo", [f"algorithm.name={method}"])
    (tmp_path / "pickle").write_bytes(pickle.dumps(config))
    method.unlink()
    program = f"""
import pickle
from fedvsr.algorithms import build
with open({str(tmp_path / "pickle")!r}, "rb") as file:
    config = pickle.load(file)
print(config.config_hash(), build(config.algorithm).source)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == [config.config_hash(), "nowhere"], done.stderr
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_run_keeps_its_plugins_and_is_whole_without_their_files(
    tmp_path: Path, small_yaml: Path
) -> None:
    method, network = write(tmp_path, "whole"), write(tmp_path, "plain", text=NETWORK)
    settings = [f"algorithm.name={method}", "federation.num_rounds=1", "local.steps=1"]
    settings += [f"model={{name: {network}, size: demo, width: 5}}"]
    config = load_config(str(small_yaml), settings)
    folder = run_serially(config, tmp_path / "out")
    assert (folder / "plugins" / "algorithm" / "whole.py").read_bytes() == method.read_bytes()
    for path in (method, network):
        path.unlink()
        forget(path.stem)
    # Its weights alone do not say what the network is.
    with pytest.raises(UserError, match="plain is a plug-in; give the run's folder, or the"):
        models.load_checkpoint(folder / "model.safetensors")
    run = load_run(str(folder))
    assert run.config.config_hash() == config.config_hash()
    assert run.model().get_parameter("layer.weight").shape[-1] == 5


def test_a_run_is_resumed_with_its_own_plugin_only(tmp_path: Path) -> None:
    path, out = write(tmp_path, "mean", "as it was"), tmp_path / "out"
    overrides = [f"algorithm.name={path}"]
    run = create_run(load_config("demo", overrides), out)
    assert find_run(load_config("demo", overrides), out) == run
    write(tmp_path, "mean", "changed")
    with pytest.raises(UserError) as refused:
        find_run(load_config("demo", overrides), out)
    kept = f"algorithm.name={run.folder}/plugins/algorithm/mean.py"
    text = str(refused.value)
    assert f"{path} has changed since {run.id} was started (SHA-256 " in text
    assert f"--set {kept}".replace(str(out.resolve()), str(out)) in text
    assert find_run(load_config("demo", [kept]), out).folder == run.folder
    # Another method is no change of this one.
    with pytest.raises(UserError, match="no run of this configuration"):
        find_run(load_config("demo"), out)


def test_a_kept_file_that_was_edited_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "mean", "as kept")
    run = create_run(load_config("demo", [f"algorithm.name={path}"]), tmp_path / "out")
    kept = run.folder / "plugins" / "algorithm" / "mean.py"
    kept.write_text(kept.read_text() + "\n")
    forget("mean")
    with pytest.raises(UserError, match=rf"{kept}: it has changed since \(SHA-256 "):
        load_run(str(run.folder))


def test_a_module_is_recorded_and_must_stay_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = write(tmp_path / "own_methods", "mean")
    config = load_config("demo", ["algorithm.name=own_methods.mean"])
    assert config.algorithm.name == "mean"
    run = create_run(config, tmp_path / "out")
    assert "name: own_methods.mean" in (run.folder / "config.yaml").read_text()
    assert stored_config(run.folder) == config
    assert pickle.loads(pickle.dumps(config)) == config
    module.write_text(module.read_text() + "# changed\n")
    with pytest.raises(UserError, match=r"the module own_methods.mean differs on .*; install the"):
        pickle.loads(pickle.dumps(config))


def test_entry_points_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path / "installed_methods", "installed")
    info = tmp_path / "installed_methods-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: installed_methods\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[fedvsr.algorithms]\ninstalled = installed_methods.installed\nfedprox = nowhere.fedprox\n"
    )
    importlib.invalidate_caches()
    config = load_config("demo", ["algorithm.name=installed"])
    assert build(config.algorithm).source == "nowhere"
    assert "name: installed\n" in config.to_yaml()
    with pytest.raises(UserError, match=r"did you mean 'installed'.*there are: .*installed"):
        load_config("demo", ["algorithm.name=instaled"])
    assert load_config("demo", ["algorithm.name=fedprox"]).plugins() == []


def test_settings_of_others_execute_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    bomb = write(tmp_path, "bomb", text=f"open({str(mark)!r}, 'w').close()\n")
    sha256 = plugins.read("model", bomb).sha256
    for name in (str(bomb), "bomb"):
        model = {"name": name, "size": "demo", "sha256": sha256}
        settings = load_config("demo").model_dump(mode="json") | {"model": model}
        with pytest.raises(ValueError, match="is of a plug-in, which is not loaded here"):
            ExperimentConfig.model_validate(settings, context=LOADED_ONLY)
        with pytest.raises(UserError, match="is a plug-in; give the run's folder, or the network"):
            models._recorded(model, tmp_path / "model.safetensors")
    assert not mark.exists()
