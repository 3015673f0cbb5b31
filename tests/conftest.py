"""What tests share: a short real video, an experiment of seconds, its undisturbed run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from fedvsr.environment import let_threads_sleep

let_threads_sleep()
# xdist sets it for its workers; commands would print for a terminal of that width.
os.environ.pop("COLUMNS", None)

from fedvsr.config import ExperimentConfig, load_config  # noqa: E402 (after the line above)
from fedvsr.contracts.samples import moving_texture, write_video  # noqa: E402

__all__ = ["moving_texture", "write_video"]
TESTS = Path(__file__).parent


# Modules whose tests share nothing: each starts a cluster, or a command, of its own.
OWN_CLUSTERS = {
    "test_clusters",
    "test_hangs",
    "test_resume",
    "test_slurm",
    "test_stops",
    "test_sweep",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Let `pytest -n 2` run a module on one worker: its Ray cluster and fixtures are made once.

    The tests of `OWN_CLUSTERS` go to any worker. Modules start in the order of their paths: those
    of unit tests, which are short, come last and even out the workers' ends.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return nodeid if Path(module).stem in OWN_CLUSTERS else module

    config.option.loadscopereorder = False
    return ByModule(config, log)


MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> MakeOnce:
    """Gives a folder by name, filled by the first of pytest's workers that asks for it.

    The other workers wait, and then see the same folder. Tests only read what is in it.
    """
    root = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        root = root.parent

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = root / f"shared-{name}", root / f"shared-{name}.done"
        with FileLock(root / f"shared-{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def video(make_once: MakeOnce) -> Path:
    def fill(folder: Path) -> None:
        frames = moving_texture(num_frames=40, height=48, width=64)
        write_video(folder / "texture.mp4", frames)

    return make_once("video", fill) / "texture.mp4"


@pytest.fixture(scope="session")
def small_yaml(video: Path, make_once: MakeOnce) -> Path:
    """A whole experiment, seconds long: 4 clients, 2 a round, 3 rounds. Its clips are cut."""
    from fedvsr.runs.launch import prepare_data

    def fill(folder: Path) -> None:
        settings: dict[str, Any] = {
            "name": "small",
            "seed": 3,
            "data": {
                "videos": [str(video)],
                "clip_frames": 4,
                "num_clients": 4,
                "cache_dir": str(folder / "cache"),
            },
            "model": {"name": "tiny", "channels": 4, "blocks": 1},
            "algorithm": {"name": "fedvsr"},
            "federation": {"num_rounds": 3, "clients_per_round": 2},
            "local": {"steps": 3, "batch_size": 2, "num_frames": 3, "crop": 32, "lr": 2e-3},
            "evaluation": {"num_threads": 1},
        }
        path = folder / "small.yaml"
        path.write_text(yaml.safe_dump(settings))
        prepare_data(load_config(str(path)), lambda *_: None)

    return make_once("small", fill) / "small.yaml"


@pytest.fixture
def small(small_yaml: Path) -> ExperimentConfig:
    return load_config(str(small_yaml))


@pytest.fixture(scope="session")
def undisturbed(small_yaml: Path, make_once: MakeOnce) -> Path:
    """The folder of the small experiment's run in which nothing failed, by the serial executor."""
    from tests.integration.running import run_serially

    config = load_config(str(small_yaml))
    (run,) = make_once("undisturbed", lambda folder: run_serially(config, folder)).iterdir()
    return run
